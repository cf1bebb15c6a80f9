"""The engine: feeds a pool from a queue until both are empty or somebody says stop.

Knows a pool by what it does, not by what it is made of, and neither manifests nor stores.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from batchgen.engine.queue import Cause, Failure, Finished, ShardQueue, ShardTry
from batchgen.rows import Receipt, Shard

__all__ = ["Control", "Workers", "drive", "signals"]

HEARTBEAT = 0.5  # seconds between looks at signals and limits


class Workers(Protocol):
    """What `drive` needs of a pool."""

    @property
    def in_work(self) -> int: ...
    def has_room(self, tried: ShardTry, /) -> bool: ...
    def submit(self, tried: ShardTry, /) -> None: ...
    def wait(self, seconds: float, /) -> Sequence[Finished]: ...


class Control:
    """Whether a run should stop: after a signal, or when its time is over. Shards in work are still finished."""

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline  # of time.monotonic()
        self.signal: str | None = None

    @property
    def reason(self) -> str | None:
        """Why to stop; None to go on."""
        if self.signal is not None:
            return self.signal
        if self.deadline is not None and time.monotonic() > self.deadline:
            return "the limit max_hours is reached"
        return None


def drive(
    queue: ShardQueue,
    workers: Workers,
    control: Control,
    *,
    recovered: Callable[[Shard], Receipt | None],
    committed: Callable[[Shard, Receipt], None],
    failed: Callable[[Shard, Failure, int], None],
    troubled: Callable[[Shard, Failure], None],
) -> None:
    """Run until nothing is left, or until `control` says stop and what is in work has come back.

    Args:
        queue: what to run; takes back what failed.
        workers: who runs it.
        control: says when to stop.
        recovered: the receipt of a shard that is committed although its attempt failed.
        committed: called with each committed shard and its receipt.
        failed: called with a shard whose rows are beyond help, why, and after how many attempts.
        troubled: called with a shard that will be tried again.

    Raises:
        InfrastructureError: store, model or workers keep failing.
    """
    while workers.in_work or not (queue.empty or control.reason):
        now = time.monotonic()
        while not control.reason and (tried := queue.peek(now)) is not None and workers.has_room(tried):
            queue.take(now)
            workers.submit(tried)
        for finished in workers.wait(HEARTBEAT):
            receipt = finished.result
            if isinstance(receipt, Failure) and receipt.cause is Cause.WORKER:
                # a worker may have died between its commit and its answer
                receipt = recovered(finished.tried.shard) or receipt
            if isinstance(receipt, Receipt):
                committed(finished.tried.shard, receipt)
                continue
            hopeless = queue.failed(finished.tried, receipt, time.monotonic())
            if hopeless is None:
                troubled(finished.tried.shard, receipt)
            else:
                failed(hopeless, receipt, sum(finished.tried.failures.values()) + 1)


@contextmanager
def signals(control: Control, told: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM let what is in work finish; a second one raises KeyboardInterrupt at once.

    To be entered after Ray has started, which installs a handler of its own.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        if control.signal is not None:
            raise KeyboardInterrupt
        control.signal = f"stopped by {signal.Signals(number).name}"
        told("finishing the shards in work; once more stops at once")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
