"""`python -m batchgen`."""

from batchgen.cli import process

process()
