"""Progress lines on stderr; a module of its own, for training processes import it and cannot import `__main__`."""

import sys


def say(line: str) -> None:
    """Write one line at once."""
    print(line, file=sys.stderr, flush=True)
