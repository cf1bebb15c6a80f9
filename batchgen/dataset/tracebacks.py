"""Whole tracebacks of what failed in a run, `.batchgen/runs/<run>/tracebacks/`: a ledger has one line of each."""

import hashlib
import traceback
from contextlib import suppress

from batchgen.dataset.runs import RUNS
from batchgen.errors import StoreError, printable
from batchgen.storage import Store

__all__ = ["Tracebacks"]

MOST = 16  # of one worker; rows that fail alike have one
LONGEST = 64 << 10  # characters of one: the first and the last half of them are kept


class Tracebacks:
    """Those of one worker; may be added to from several threads."""

    def __init__(self, store: Store, run: str) -> None:
        self._store = store
        self._run = run
        self._kept: set[str] = set()

    def keep(self, error: BaseException, about: str) -> None:
        """Keep where an error came from, if it is not kept already; where the store fails, go without.

        Args:
            error: it holds on to whatever failed, and is not kept itself.
            about: the row or the shard that met it.
        """
        text = printable("".join(traceback.format_exception(error)))
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        if name in self._kept or len(self._kept) >= MOST:
            return
        self._kept.add(name)
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]}\n... {len(text) - LONGEST:,} characters ...\n{text[-LONGEST // 2 :]}"
        with suppress(StoreError):
            self._store.write(f"{RUNS}/{self._run}/tracebacks/{name}.txt", f"{printable(about)}\n\n{text}".encode())
