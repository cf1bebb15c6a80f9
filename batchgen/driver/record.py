"""The record of a run that goes on: written before anything is made, closed in one place, whatever ends the run."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from batchgen.dataset.runs import FAILED, FINISHED, LIMIT_REACHED, RunRecord, write_run
from batchgen.engine.loop import Control
from batchgen.errors import BatchgenError, StoreError, one_line
from batchgen.storage import Store

__all__ = ["OpenRecord"]


@dataclass(kw_only=True, slots=True)
class OpenRecord:
    """What is known of a run so far; a run that found nothing to do, and says nothing new, leaves no record."""

    store: Store
    record: RunRecord
    previous: RunRecord | None = None  # of the run before
    whole: str = FINISHED  # the outcome, where nothing stops the run
    rows: Callable[[], Mapping[str, Any]] | None = None  # tells where the manifest's rows stand, once that is known
    is_stored: bool = False

    def note(self, **known: Any) -> None:
        """Store what has become known of the run."""
        self.record = replace(self.record, **known)
        write_run(self.store, self.record)
        self.is_stored = True

    @contextmanager
    def closing(self, control: Control, left: Callable[[], int]) -> Iterator[None]:
        """Close the record at the end, with the outcome and its reason.

        Args:
            control: says why a run stopped early.
            left: how many rows are not made; none, and nothing was stopped.
        """
        try:
            yield
        except BaseException as error:
            with suppress(StoreError):  # what ended the run matters more
                self._close(_outcome(error))
            raise
        outcome = (control.reason if left() else None) or self.whole
        ended_well = self.previous is None or self.previous.outcome in (FINISHED, LIMIT_REACHED)
        if self.is_stored or outcome != FINISHED or not ended_well:
            self._close(outcome)

    def _close(self, outcome: str) -> None:
        known = {} if self.rows is None else {"settled": True, **self.rows()}
        self.note(finished=time.time(), outcome=outcome, **known)


def _outcome(error: BaseException) -> str:
    if isinstance(error, BatchgenError):
        return f"{FAILED}: {error}"
    return f"{FAILED}: {type(error).__name__}: {one_line(error)}" if isinstance(error, Exception) else "stopped at once"
