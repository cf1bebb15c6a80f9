"""What failed is said in one voice: by a run's summary, `status`, `verify` and the ledgers, whatever came before."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_commit import attempt, cut_after, make_format
from test_plan import fill, key_of, make_row
from test_status import make_record

from batchgen.dataset import progress
from batchgen.dataset.commit import commit_failures, withdraw_failures
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.progress import Damages, booked_shards, fold_receipts, read_receipts
from batchgen.dataset.receipts import RECEIPTS
from batchgen.dataset.runs import latest_run, write_run
from batchgen.dataset.snapshots import list_snapshots
from batchgen.dataset.verify import verify_output
from batchgen.driver.books import Books
from batchgen.driver.output import committed_rows, survey
from batchgen.errors import ErrorClass
from batchgen.index import Index
from batchgen.job import Job
from batchgen.options import Layout
from batchgen.report.status import read_status
from batchgen.resolve import Resolved
from batchgen.rows import DoneRow, Row, failed_row, make_shard
from batchgen.storage import open_store

ROWS = 6
PENDING, DONE, FAILED = "pending", "done", "failed"

ids = st.sets(st.integers(0, ROWS - 1), max_size=3)
never = st.just(10**6)
changes = never | st.integers(0, 12)  # of the store, before a kill


class Bookkeeping(RuleBasedStateMachine):
    """An output of a manifest of which rows are edited, made, failed, opened again, killed and lost."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="batchgen-books-")
        self.versions = [0] * ROWS
        self.states = [PENDING] * ROWS
        self.runs = 0
        self.is_recorded = False  # whether the latest record is of the manifest as it is
        self.is_settled = True  # nothing was killed since a run went to its end

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(layout=st.sampled_from(list(Layout)))
    def begin(self, layout: Layout) -> None:
        self.dataset = Dataset.begin(open_store(self.folder), make_format(layout), create=True)

    def rows(self) -> list[Row]:
        """The manifest."""
        return [replace(make_row(n), fingerprint=f"{version:08x}{n:056x}") for n, version in enumerate(self.versions)]

    @contextmanager
    def running(self, dataset: Dataset) -> Iterator[Books]:
        """A run that has read what is done."""
        self.runs += 1
        with Index() as index:
            fill(index, self.rows())
            resolved = Resolved(files=[], models={}, carried={}, notices=[], read=set())
            run = Books(job=Job(manifest="m"), source="", dataset=dataset, index=index, resolved=resolved, notice=print)
            run.started = float(self.runs)
            run.read_done()
            yield run

    @rule(edited=ids, made=ids, failed=ids, cut=changes, whole=st.booleans())
    def run(self, edited: set[int], made: set[int], failed: set[int], cut: int, whole: bool) -> None:
        """A run over the manifest, some rows of which were edited; makes some rows, and may be killed."""
        for n in edited:
            self.versions[n] += 1
            self.states[n] = PENDING
            self.is_recorded = False
        pending = [n for n in sorted(made | failed) if self.states[n] == PENDING]
        after = [(FAILED if n in failed else DONE) if n in pending else state for n, state in enumerate(self.states)]
        try:
            with self.running(cut_after(self.dataset, cut)) as run:
                self.make(run, [self.rows()[n] for n in pending], failed, whole)
        except KeyboardInterrupt:
            self.is_settled = False
            found = self.summary()[1]
            assert all(now in (old, new) for now, old, new in zip(found, self.states, after, strict=True))
            self.states = found
        else:
            self.states, self.is_settled = after, True

    def make(self, run: Books, rows: list[Row], failed: set[int], whole: bool) -> None:
        """What `run` does, without the workers."""
        counts = run.index.counts()
        record = make_record(
            run=run.name, rows=counts.total, done_before=counts.done, failed_before=counts.failed, **run.rows()
        )
        shards = [make_shard(key_of(row), 2, [row]) for row in rows]
        if rows and whole:
            shards = [make_shard(key_of(rows[0]), 2, rows)]
        if shards:
            write_run(run.dataset.store, record)
            self.is_recorded = True
        for shard in shards:
            bad = tuple(place for place, row in enumerate(shard.rows) if row.number in failed)
            if len(bad) == len(shard.rows) and whole:
                outcomes = [failed_row(row, ErrorClass.WORKER, "died", 3) for row in shard.rows]
                receipt = commit_failures(run.dataset, shard, run.name, outcomes)
            else:
                receipt = attempt(run.dataset, shard, failed=bad, run=run.name)
            lost = {row.id for row in receipt.failures}
            done = [DoneRow(row.id, row.fingerprint) for row in shard.rows if row.id not in lost]
            run.index.mark(committed_rows(receipt, done))
        if shards:
            write_run(run.dataset.store, replace(record, finished=1.0, outcome="finished", settled=True, **run.rows()))
        run.supersede()
        run.settle_record()
        self.is_recorded = latest_run(run.dataset.store) is not None

    @rule(cut=changes)
    def retry(self, cut: int) -> None:
        """All failed rows are open again; from one moment on, for everybody."""
        dataset = cut_after(self.dataset, cut)
        before = self.states
        opened = [PENDING if state == FAILED else state for state in self.states]
        try:
            receipts = [one for one in read_receipts(dataset, repair=True, damages=Damages()) if one.failures]
            if receipts:
                withdraw_failures(dataset, [(one, one.failures) for one in receipts])
        except KeyboardInterrupt:
            self.is_settled = False
            self.states = self.summary()[1]
            assert self.states in (before, opened)
        else:
            self.states = opened

    @precondition(lambda self: self.runs)
    @rule(number=st.integers(0, 99))
    def lose_receipt(self, number: int) -> None:
        """It says nothing that marker, ledger and what was withdrawn do not."""
        names = self.dataset.store.names(RECEIPTS)
        if names:
            self.dataset.store.delete(f"{RECEIPTS}/{names[number % len(names)]}")

    @precondition(lambda self: self.runs)
    @rule()
    def lose_snapshots(self) -> None:
        """Nor does a snapshot."""
        for snapshot in list_snapshots(self.dataset.store):
            snapshot.delete()

    @rule(cut=changes)
    def fold(self, cut: int) -> None:
        """Receipts are folded, maybe not to the end."""
        with suppress(KeyboardInterrupt):
            fold_receipts(cut_after(self.dataset, cut))

    def summary(self) -> tuple[tuple[int, int, int, int], list[str]]:
        """What a run would say, and of which rows."""
        with Index() as index:
            fill(index, self.rows())
            survey(self.dataset, index, repair=False, damages=Damages())
            counts = index.counts()
            states = dict.fromkeys((row.id for row in self.rows()), DONE)
            states |= dict.fromkeys((row.id for _, row in index.pending()), PENDING)
            states |= dict.fromkeys((id_ for id_, _ in index.failed()), FAILED)
            return (counts.total, counts.done, counts.failed, counts.pending), list(states.values())

    def ledger(self) -> set[tuple[str, str]]:
        files = Path(self.folder, "failures").glob("*.parquet")
        return {(row["id"], row["fingerprint"]) for file in files for row in pq.read_table(file).to_pylist()}

    @invariant()
    def they_agree(self) -> None:
        numbers, states = self.summary()
        assert states == self.states
        found = verify_output(self.folder)
        if self.is_recorded:
            status = read_status(self.folder)
            assert (status.rows, status.done, status.failed, status.left) == numbers
            assert sum(status.failures.values()) == status.failed
            assert (found.manifest_rows, found.done, found.failed, found.left) == numbers
        rows = {(row.id, row.fingerprint) for row, state in zip(self.rows(), states, strict=True) if state == FAILED}
        listed = self.ledger()
        if self.is_settled:
            # what an edited row was before stays, made or failed, until the row is tried
            assert PENDING in states or listed == rows
            assert len(listed) == found.failed_rows and rows <= listed
            assert [
                fault for fault in found.faults if PENDING not in states or "drops one of the two" not in fault
            ] == []
        else:
            # books of a shard whose worker was killed right after the marker are written by the next run
            unbooked = set(self.dataset.shards()) - booked_shards(self.dataset.store)
            assert rows <= listed or unbooked or any("failures/" in fault for fault in found.faults)


@pytest.fixture(autouse=True)
def folded_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fold makes a snapshot."""
    monkeypatch.setattr(progress, "FOLD_ABOVE", 0)


TestBooks = pytest.mark.slow(Bookkeeping.TestCase)
TestBooks.settings = settings(
    max_examples=12,
    stateful_step_count=12,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
