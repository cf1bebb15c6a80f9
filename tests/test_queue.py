"""What happens to units of work that fail: retry with a bounded pause, cut, record, or end the run."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import key_of, make_row

from batchgen.engine.loop import Control, drive, signals
from batchgen.engine.patience import Patience
from batchgen.engine.queue import Fate, Finished, Try, WorkQueue
from batchgen.errors import ErrorClass, InfrastructureError, ModelLoadError, StoreError, StoreRefused
from batchgen.identity import shard_id
from batchgen.rows import Receipt, Shard
from batchgen.work import Failure, FailureKind, failure_of, lost


def make_shard(first: int, count: int, batch_size: int = 4) -> Shard:
    rows = tuple(make_row(number) for number in range(first, first + count))
    name = shard_id((row.id, row.fingerprint) for row in rows)
    return Shard(id=name, key=key_of(rows[0]), batch_size=batch_size, rows=rows)


TRANSIENT = (ErrorClass.STORE, ErrorClass.MODEL, ErrorClass.MEMORY, ErrorClass.GENERATION)


def failure(error_class: ErrorClass) -> Failure:
    kind = FailureKind.LOST if error_class is ErrorClass.WORKER else FailureKind.TRANSIENT
    kind = FailureKind.PERMANENT if error_class is ErrorClass.INPUT else kind
    return Failure(kind=kind, error_class=error_class, message=f"an error of the {error_class}")


def receipt_of(shard: Shard) -> Receipt:
    count = len(shard.rows)
    return Receipt(
        shard=shard.id,
        attempt="a",
        run="r",
        done=count,
        failures=[],
        key=shard.key,
        device="cpu",
        seconds=0,
        finished=0,
    )


@dataclass
class Process:
    """A worker process: takes two shards, works on the older, and where that kills it, the younger dies with it."""

    held: list[Try[Shard]] = field(default_factory=list)

    def has_room(self, tried: Try[Shard]) -> bool:
        return not any(other.alone for other in self.held) and len(self.held) < (1 if tried.alone else 2)


@dataclass
class InMemory:
    """A pool of worker processes in this process; `breaks` says what an attempt at a shard runs into, if anything."""

    breaks: Callable[[Shard], ErrorClass | None]
    processes: list[Process] = field(default_factory=lambda: [Process()])
    attempts: list[Try[Shard]] = field(default_factory=list)
    lost: int = 0  # processes

    @property
    def in_work(self) -> int:
        return sum(len(process.held) for process in self.processes)

    def has_room(self, tried: Try[Shard], /) -> bool:
        return any(process.has_room(tried) for process in self.processes)

    def in_progress(self) -> list[list[tuple[Shard, Any]]]:
        return [[(tried.unit, None) for tried in process.held] for process in self.processes]

    def submit(self, tried: Try[Shard], /) -> None:
        self.attempts.append(tried)
        roomy = [process for process in self.processes if process.has_room(tried)]
        min(roomy, key=lambda process: len(process.held)).held.append(tried)

    def wait(self, seconds: float, /) -> Sequence[Finished[Shard]]:
        ended: list[Finished[Shard]] = []
        for process in self.processes:
            if not process.held:
                continue
            cause = self.breaks(process.held[0].unit)
            if cause is ErrorClass.WORKER:
                self.lost += 1
                ended += [Finished(tried=tried, result=lost("died", str(self.lost))) for tried in process.held]
                process.held.clear()
            else:
                tried = process.held.pop(0)
                ended.append(Finished(tried=tried, result=receipt_of(tried.unit) if cause is None else failure(cause)))
        if not ended:
            time.sleep(min(seconds, 0.01))
        return ended


@dataclass
class Books:
    """What `drive` reported."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    retried: int = 0


def run(queue: WorkQueue[Shard], pool: InMemory, control: Control | None = None, books: Books | None = None) -> Books:
    books = books or Books()

    def note_failed(shard: Shard, _why: Failure, _attempts: int) -> None:
        books.failed += [row.id for row in shard.rows]

    def note_retry(_shard: Shard, _why: Failure) -> None:
        books.retried += 1

    drive(
        queue,
        pool,
        control or Control(),
        recovered=lambda _shard: None,
        committed=lambda shard, _: books.done.extend(row.id for row in shard.rows),
        failed=note_failed,
        retried=note_retry,
        progressed=lambda _held: None,
    )
    return books


@pytest.fixture(autouse=True)
def no_pauses(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of seconds become milliseconds, except where they are what is tested."""
    if "pauses" not in request.node.name:
        monkeypatch.setattr("batchgen.engine.queue._FIRST_PAUSE", 0.001)


def holds(*numbers: int) -> Callable[[Shard], bool]:
    return lambda shard: any(row.number in numbers for row in shard.rows)


def test_all_shards_are_run_once() -> None:
    """Every shard that does not fail is run exactly once."""
    shards = [make_shard(first, 4) for first in range(0, 40, 4)]
    pool = InMemory(lambda _: None, [Process(), Process(), Process()])
    books = run(WorkQueue(iter(shards)), pool)
    assert sorted(books.done) == sorted(row.id for shard in shards for row in shard.rows)
    assert (books.failed, books.retried, len(pool.attempts)) == ([], 0, 10)


@pytest.mark.parametrize("poison", [0, 5, 15])
@pytest.mark.parametrize("workers", [1, 2])
def test_one_poison_row_is_isolated(poison: int, workers: int) -> None:
    """DESIGN: the poison row is isolated by bisection and recorded, and its batch-mates are unharmed.

    A row that kills the process also kills what is beside it: that must not be held against the neighbour.
    """
    poisonous = holds(poison)
    pool = InMemory(lambda shard: ErrorClass.WORKER if poisonous(shard) else None, [Process() for _ in range(workers)])
    books = run(WorkQueue(iter([make_shard(0, 16), make_shard(16, 16), make_shard(32, 6)])), pool)
    assert books.failed == [f"row-{poison}"]
    assert sorted(books.done) == sorted(f"row-{n}" for n in range(38) if n != poison)
    assert len(pool.attempts) < 60


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.sets(st.integers(0, 29), max_size=4), st.integers(1, 5))
def test_any_poison_rows_are_isolated(count: int, poison: set[int], batch_size: int) -> None:
    """done + failed = planned, and only poison rows are failed, when they kill their worker."""
    poisonous = holds(*poison)
    pool = InMemory(lambda shard: ErrorClass.WORKER if poisonous(shard) else None)
    books = Books()
    with suppress(ModelLoadError):
        run(WorkQueue(iter([make_shard(0, count, batch_size)])), pool, books=books)
    expected = {number for number in poison if number < count}
    if len(expected) > 1 and not books.done:
        return  # three workers were lost before anything was made, which the model was blamed for
    assert sorted(books.failed) == sorted(f"row-{n}" for n in expected)
    assert sorted(books.done) == sorted(f"row-{n}" for n in range(count) if n not in expected)


@pytest.mark.parametrize("cause", [*TRANSIENT, ErrorClass.WORKER])
def test_a_passing_failure_harms_nobody(cause: ErrorClass) -> None:
    """A worker that dies once, a store that fails once: the shard is run again, whole, and nothing is recorded."""
    left = [1]

    def breaks(_shard: Shard) -> ErrorClass | None:
        return cause if left and left.pop() else None

    pool = InMemory(breaks)
    books = run(WorkQueue(iter([make_shard(0, 8)])), pool)
    assert (len(books.done), books.failed, books.retried) == (8, [], 1)
    assert [len(tried.unit.rows) for tried in pool.attempts] == [8, 8]


@pytest.mark.parametrize(
    ("cause", "attempts"), [(ErrorClass.INPUT, 1), (ErrorClass.GENERATION, 2), (ErrorClass.MEMORY, 2)]
)
def test_what_belongs_to_the_unit_is_recorded_whole(cause: ErrorClass, attempts: int) -> None:
    """Incident: an adapter that did not load cost 2,176 attempts and 1,024 shards of one row, for 1,024 rows."""
    pool = InMemory(lambda _: cause)
    books = run(WorkQueue(iter([make_shard(0, 1024)])), pool)
    assert len(pool.attempts) == attempts
    assert (books.done, len(books.failed)) == ([], 1024)


def made_by(model: str, shard: Shard) -> Shard:
    """The same shard with rows of another model."""
    rows = [replace(row, parameters=replace(row.parameters, model=model)) for row in shard.rows]
    return replace(shard, id=f"{model}-{shard.id}", rows=rows)


@pytest.mark.parametrize(("shards", "workers"), [(1, 1), (1, 2), (2, 1), (2, 2), (50, 1), (50, 4)])
def test_a_model_that_kills_its_workers_is_given_up(shards: int, workers: int) -> None:
    """Incident: 24 rows of a model whose loading killed the process took 74 workers, and all counted as failed."""
    pool = InMemory(lambda _: ErrorClass.WORKER, [Process() for _ in range(workers)])
    books = Books()
    with pytest.raises(ModelLoadError, match=r"workers were lost before one got anywhere with .*: died"):
        run(WorkQueue(make_shard(12 * n, 12) for n in range(shards)), pool, books=books)
    assert 3 <= pool.lost <= 3 + workers
    assert (books.done, books.failed) == ([], [])


@pytest.mark.parametrize("cause", [ErrorClass.WORKER, ErrorClass.MODEL])
def test_other_models_are_done_first(cause: ErrorClass) -> None:
    """One model of three that cannot be loaded: the run ends with the reason, once all rows of the others are made."""
    shards = [made_by(model, make_shard(8 * n, 8)) for model in ("a", "bad", "c") for n in range(6)]
    pool = InMemory(lambda shard: cause if shard.needs == "bad" else None, [Process(), Process()])
    books = Books()
    with pytest.raises(ModelLoadError, match=r"died|error of the"):
        run(WorkQueue(iter(shards)), pool, books=books)
    assert (len(books.done), books.failed) == (2 * 6 * 8, [])
    assert pool.lost <= 5 and sum(tried.unit.needs == "bad" for tried in pool.attempts) <= 10


def test_a_poison_row_is_no_models_fault_once_the_model_has_worked() -> None:
    """Deaths after progress are the rows': the model is not given up however many die."""
    shards = [make_shard(12 * n, 12) for n in range(6)]
    poisonous = holds(20, 30, 40, 50)
    pool = InMemory(lambda shard: ErrorClass.WORKER if poisonous(shard) else None)
    books = run(WorkQueue(iter(shards)), pool)
    assert sorted(books.failed) == ["row-20", "row-30", "row-40", "row-50"]


def test_a_stop_does_not_wait_for_ever() -> None:
    """Incident: a row that never ended held up SIGTERM and max_hours for ever."""

    class Hanging(InMemory):
        def wait(self, seconds: float, /) -> Sequence[Finished[Shard]]:
            time.sleep(min(seconds, 0.01))
            return []

    pool = Hanging(lambda _: None)
    began = time.monotonic()
    books = run(WorkQueue(iter([make_shard(0, 4)])), pool, Control(deadline=began + 0.05, grace=0.2))
    assert (books, pool.in_work) == (Books(), 1)
    assert 0.2 < time.monotonic() - began < 5


def test_patience_follows_what_was_measured() -> None:
    """An hour for what was never seen, then twenty times the longest step of the key, and never less than a store's."""
    patience = Patience(None)
    assert patience.seconds({"a"}) == 3600
    patience.learn("a", 5.0)
    assert (patience.seconds({"a"}), patience.seconds({"a", "b"})) == (600, 3600)
    patience.learn("a", 100.0)
    patience.learn("a", 1.0)
    assert patience.seconds({"a"}) == 2000
    assert Patience(0.5).seconds({"a"}) == 30


@pytest.mark.parametrize(("cause", "error"), [(ErrorClass.STORE, StoreError), (ErrorClass.MODEL, ModelLoadError)])
def test_store_and_model_failures_end_the_run(cause: ErrorClass, error: type[InfrastructureError]) -> None:
    """No row is to blame for a store that is down: the run ends with exit 4, and no row is recorded as failed."""
    pool = InMemory(lambda _: cause)
    with pytest.raises(error, match=r"error of the .*tried"):
        run(WorkQueue(iter([make_shard(0, 8)])), pool)
    assert 1 < len(pool.attempts) <= 5


def test_what_somebody_must_see_to_ends_the_run_at_once() -> None:
    """A full disk or expired keys: no unit is made once more to meet them again."""
    queue = WorkQueue(iter([make_shard(0, 8), make_shard(8, 8)]))
    tried = queue.take(0.0)
    assert tried is not None
    with pytest.raises(StoreRefused, match="full"):
        queue.failed(tried, failure_of(StoreRefused("the disk is full")), 0.0)


def test_one_model_failure_after_another_failure_is_tried_again() -> None:
    """Tries are counted for each cause apart: a model that failed once, after the worker died once, gets its second."""
    queue = WorkQueue(iter([make_shard(0, 4)]))
    tried = queue.take(0.0)
    assert tried is not None
    for now, cause in ((0.0, ErrorClass.WORKER), (100.0, ErrorClass.MODEL)):
        assert queue.failed(tried, failure(cause), now) is Fate.AGAIN
        tried = queue.take(now + 60)
        assert tried is not None


def test_pauses_double_up_to_a_bound() -> None:
    """Backoff: each pause is at least as long as the one before, none is longer than half a minute."""
    queue = WorkQueue(iter([make_shard(0, 8)]))
    tried = queue.take(0.0)
    assert tried is not None
    now, pauses = 0.0, []
    for _ in range(4):
        assert queue.failed(tried, failure(ErrorClass.STORE), now) is Fate.AGAIN
        step = next(s / 10 for s in range(1, 400) if (again := queue.take(now + s / 10)) is not None)
        assert again is not None
        pauses.append(step)
        now, tried = now + step, again
    assert pauses == sorted(pauses)
    assert pauses[0] >= 1
    assert pauses[-1] > pauses[0]
    assert max(pauses) <= 30


def test_what_waits_does_not_hold_up_the_rest() -> None:
    """During a pause new shards go out; the queue is not empty while something waits."""
    queue = WorkQueue(iter([make_shard(0, 4), make_shard(4, 4)]))
    first = queue.take(0.0)
    assert first is not None
    queue.failed(first, failure(ErrorClass.STORE), 0.0)
    second = queue.take(0.0)
    assert second is not None
    assert second.unit.rows[0].number == 4
    assert queue.take(0.0) is None
    assert not queue.empty
    again = queue.take(3600.0)
    assert again is not None
    assert (again.unit, again.failures) == (first.unit, {ErrorClass.STORE: 1})
    assert queue.empty


def test_shards_are_drawn_as_they_are_needed() -> None:
    """The driver holds O(workers) shards: a manifest of any size is not cut in advance."""
    drawn: list[int] = []

    def endless() -> Iterator[Shard]:
        for number in range(1000):
            drawn.append(number)
            yield make_shard(4 * number, 4)

    queue = WorkQueue(endless())
    for _ in range(3):
        queue.take(0.0)
    assert len(drawn) <= 5


def test_a_stop_lets_what_is_in_work_finish() -> None:
    """After a stop nothing new is handed out, and what was in work is committed."""
    control = Control()
    pool = InMemory(lambda _: None, [Process(), Process()])
    shards = [make_shard(first, 4) for first in range(0, 400, 4)]

    def stop_at_third(shard: Shard) -> ErrorClass | None:
        if len(pool.attempts) >= 6:
            control.signal = "stopped"
        return None

    pool.breaks = stop_at_third
    books = run(WorkQueue(iter(shards)), pool, control)
    assert pool.in_work == 0
    assert len(books.done) == 4 * len(pool.attempts)
    assert len(pool.attempts) < 12


def test_a_deadline_stops_as_a_signal_does() -> None:
    """The limit max_hours: a run past it hands out nothing."""
    control = Control(deadline=time.monotonic() - 1)
    pool = InMemory(lambda _: None)
    assert run(WorkQueue(iter([make_shard(0, 4)])), pool, control) == Books()
    assert control.reason is not None
    assert "max_hours" in control.reason


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_gently_and_then_at_once(number: signal.Signals) -> None:
    """The first signal is noted, the second raises, and the handlers that were there come back."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    control, notices = Control(), list[str]()
    with pytest.raises(KeyboardInterrupt), signals(control, notices.append):
        os.kill(os.getpid(), number)
        assert control.reason == f"stopped by {number.name}"
        assert len(notices) == 1
        os.kill(os.getpid(), number)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
