"""The command line."""

from batchgen.cli.commands import main

__all__ = ["main"]
