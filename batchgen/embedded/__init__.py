"""What images of other programs say of how they were made: a module a program, read into rows of a manifest."""

from batchgen.embedded.images import Imported, import_images

__all__ = ["Imported", "import_images"]
