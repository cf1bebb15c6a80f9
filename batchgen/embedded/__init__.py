"""What pictures of other programs say of how they were made: a module a program, read into rows of a manifest."""

from batchgen.embedded.pictures import Imported, import_pictures

__all__ = ["Imported", "import_pictures"]
