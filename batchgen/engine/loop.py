"""The engine: feeds a pool from a queue until both are empty or somebody says stop.

Knows a pool by what it does, not by what it is made of, and nothing of what the work is.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from types import FrameType
from typing import Any, Protocol, TypeVar

from batchgen.engine.queue import Fate, Finished, Try, WorkQueue
from batchgen.errors import ErrorClass
from batchgen.work import Failure, FailureKind, Unit

__all__ = ["Control", "Workers", "drive", "signals"]

_Unit = TypeVar("_Unit", bound=Unit)

HEARTBEAT = 0.5  # seconds between looks at signals and limits


class Workers(Protocol):
    """What `drive` needs of a pool."""

    @property
    def in_work(self) -> int: ...
    def has_room(self, tried: Try[Any], /) -> bool: ...
    def submit(self, tried: Try[Any], /) -> None: ...
    def wait(self, seconds: float, /) -> Sequence[Finished[Any]]: ...
    def in_progress(self) -> Sequence[Sequence[tuple[Any, Any]]]: ...


class Control:
    """Whether a run should stop: after a signal, when its time is over, or as it turns out to be pointless.

    Units in work are still finished, for as long as the grace lasts.
    """

    def __init__(self, deadline: float | None = None, grace: float = math.inf) -> None:
        self.deadline = deadline  # of time.monotonic()
        self.grace = grace  # seconds
        self.signal: str | None = None
        self.pointless: str | None = None  # why
        self._stopped = math.inf  # of time.monotonic()

    @property
    def reason(self) -> str | None:
        """Why to stop; None to go on."""
        if self.signal is not None:
            return self.signal
        if self.pointless is not None:
            return self.pointless
        if self.deadline is not None and time.monotonic() > self.deadline:
            return "the limit max_hours is reached"
        return None

    def overdue(self) -> bool:
        """Whether what is in work is not to be waited for any longer; to be asked again and again."""
        if self.reason is None:
            return False
        self._stopped = min(self._stopped, time.monotonic())
        return time.monotonic() - self._stopped > self.grace


def drive(
    queue: WorkQueue[_Unit],
    workers: Workers,
    control: Control,
    *,
    recovered: Callable[[_Unit], Any],
    committed: Callable[[_Unit, Any], None],
    failed: Callable[[_Unit, Failure, int], None],
    retried: Callable[[_Unit, Failure], None],
    progressed: Callable[[Sequence[Sequence[tuple[_Unit, Any]]]], None],
) -> None:
    """Run until nothing is left, or until `control` says stop and what is in work has come back, or is overdue.

    Args:
        queue: what to run; takes back what failed.
        workers: who runs it.
        control: says when to stop.
        recovered: the receipt of a unit that is committed although nobody said so, since its worker was lost or its
            store away; None where it is not.
        committed: called with each unit that is done and its receipt.
        failed: called with a unit that is not tried again, why, and after how many attempts.
        retried: called with a unit that will be tried again, and why.
        progressed: called at least every `HEARTBEAT` with the units in work, by worker that is up, and what it said
            last of each.

    Raises:
        InfrastructureError: store, model or workers keep failing.
    """

    def commit(unit: _Unit, receipt: Any) -> None:
        queue.progressed(unit)
        committed(unit, receipt)

    while not control.overdue() and (workers.in_work or not (queue.empty or control.reason)):
        now = time.monotonic()
        while not control.reason and (tried := queue.peek(now)) is not None and workers.has_room(tried):
            queue.take(now)
            # the store may have taken it, and been away before it said so
            receipt = recovered(tried.unit) if ErrorClass.STORE in tried.failures else None
            if receipt is None:
                workers.submit(tried)
            else:
                commit(tried.unit, receipt)
        for finished in workers.wait(HEARTBEAT):
            unit, result = finished.tried.unit, finished.result
            if isinstance(result, Failure) and result.kind is FailureKind.LOST:
                # a worker may have died between its commit and its answer
                result = recovered(unit) or result
            if not isinstance(result, Failure):
                commit(unit, result)
                continue
            match queue.failed(finished.tried, result, time.monotonic()):
                case Fate.AGAIN:
                    retried(unit, result)
                case Fate.RECORD:
                    failed(unit, result, sum(finished.tried.failures.values()) + 1)
                case Fate.LEFT:
                    pass
        held = workers.in_progress()
        for unit, said in chain.from_iterable(held):
            if said:
                queue.progressed(unit)
        progressed(held)
    if not (control.reason or workers.in_work):
        queue.close()


@contextmanager
def signals(control: Control, notice: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM let what is in work finish; a second one raises KeyboardInterrupt at once.

    To be entered after Ray has started, which installs a handler of its own. Python gives signals to the main thread
    alone; in any other one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if control.signal is not None:
            raise KeyboardInterrupt
        control.signal = f"stopped by {signal.Signals(number).name}"
        bound = "" if control.grace == math.inf else f" for at most {control.grace / 60:g} minutes"
        notice(f"finishing the shards in work{bound}; once more stops at once")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
