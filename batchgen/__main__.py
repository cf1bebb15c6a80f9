"""`python -m batchgen`."""

from batchgen.cli import main

main(prog_name="batchgen")
