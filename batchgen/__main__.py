"""`python -m batchgen`."""

from batchgen.cli.commands import main

main(prog_name="batchgen")
