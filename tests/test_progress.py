"""What is done, whatever commits, kills, retries, drops and folds came before: a state machine against a model."""

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_commit import attempt, cut_after, make_format, make_shard

from batchgen.dataset import progress
from batchgen.dataset.commit import drop_rows, withdraw_failures
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.progress import fold_receipts, read_done, read_receipts
from batchgen.dataset.receipts import RECEIPTS
from batchgen.dataset.verify import verify_output
from batchgen.options import Layout
from batchgen.rows import Receipt, Shard
from batchgen.storage import open_store

ROWS = 3  # of a shard


@dataclass
class Known:
    """What must be known of a shard."""

    shard: Shard
    done: list[str]
    failed: list[str]
    changed: bool = False  # since its marker was made
    removed: bool = False


class Outputs(RuleBasedStateMachine):
    """An output and what it must hold, by shard."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Known] = {}
        self.folder = tempfile.mkdtemp(prefix="batchgen-outputs-")

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(layout=st.sampled_from(list(Layout)))
    def begin(self, layout: Layout) -> None:
        self.dataset = Dataset.begin(open_store(self.folder), make_format(layout), create=True)

    def pick(self, number: int) -> Known | None:
        """One of the shards that are in data/."""
        there = [known for known in self.known.values() if not known.removed]
        return there[number % len(there)] if there else None

    def receipt_of(self, known: Known) -> Receipt:
        """What is recorded of a shard."""
        return next(r for r in read_receipts(self.dataset, repair=True) if r.shard == known.shard.id)

    @rule(failed=st.sets(st.integers(0, ROWS - 1)), changes=st.integers(0, 8))
    def commit(self, failed: set[int], changes: int) -> None:
        """A new shard, first by an attempt that is killed after some changes of the store, then by one that is not."""
        number = len(self.known)
        shard = make_shard(ROWS, f"{number:016x}", first=ROWS * number)
        with suppress(KeyboardInterrupt):
            attempt(cut_after(self.dataset, changes), shard, failed=tuple(failed))
        attempt(self.dataset, shard, failed=tuple(failed))
        self.known[shard.id] = Known(
            shard=shard,
            done=[row.id for place, row in enumerate(shard.rows) if place not in failed],
            failed=[row.id for place, row in enumerate(shard.rows) if place in failed],
        )

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 99), failed=st.sets(st.integers(0, ROWS - 1), max_size=ROWS - 1))
    def attempt_again(self, number: int, failed: set[int]) -> None:
        """An attempt that wakes up late changes nothing of a committed shard, and makes one whose rows all failed."""
        known = self.pick(number)
        if known is None or known.changed:
            return
        attempt(self.dataset, known.shard, failed=tuple(failed))
        if not known.done:
            known.done = [row.id for place, row in enumerate(known.shard.rows) if place not in failed]
            known.failed = [row.id for place, row in enumerate(known.shard.rows) if place in failed]
            known.changed = True

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 99))
    def lose_receipt(self, number: int) -> None:
        """It is rebuilt from the marker, where there is one that still says the same."""
        known = self.pick(number)
        if known is not None and known.done and not known.changed:
            self.dataset.store.delete(f"{RECEIPTS}/{known.shard.id}.json")

    @rule()
    def retry(self) -> None:
        """All failed rows are open again."""
        for receipt in list(read_receipts(self.dataset, repair=True)):
            if receipt.failed:
                withdraw_failures(self.dataset, [(receipt, receipt.failures)])
                self.known[receipt.shard].changed = True
                self.known[receipt.shard].failed = []

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 99), count=st.integers(1, ROWS), changes=st.integers(0, 3))
    def supersede(self, number: int, count: int, changes: int) -> None:
        """Rows are taken out of a shard: killed, then done again."""
        known = self.pick(number)
        if known is None or not known.done:
            return
        prints = {row.id: row.fingerprint for row in known.shard.rows}
        dropped = {(id_, prints[id_]) for id_ in known.done[:count]}
        with suppress(KeyboardInterrupt):
            drop_rows(cut_after(self.dataset, changes), self.receipt_of(known), dropped)
        drop_rows(self.dataset, self.receipt_of(known), dropped)
        known.done, known.changed = known.done[count:], True

    @rule(changes=st.integers(0, 20))
    def fold(self, changes: int) -> None:
        """Receipts are folded, maybe not to the end."""
        with suppress(KeyboardInterrupt):
            fold_receipts(cut_after(self.dataset, changes))

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 99))
    def remove(self, number: int) -> None:
        """A user removes a shard from data/, so that it is made again: all of it, where images were done."""
        known = self.pick(number)
        if known is None or not known.done:
            return
        marker = Path(self.folder, self.dataset.layout.marker_key(known.shard.id))
        if self.dataset.layout.objects_a_row:
            shutil.rmtree(marker.parent)
        else:
            marker.unlink()
        known.removed = True

    @invariant()
    def what_is_done_is_known(self) -> None:
        found = {
            receipt.shard: ([row.id for row in rows], [row.id for row in receipt.failures])
            for receipt, rows in read_done(self.dataset, repair=False)
        }
        wanted = {name: (known.done, known.failed) for name, known in self.known.items() if not known.removed}
        assert {name: both for name, both in found.items() if any(both)} == {
            name: both for name, both in wanted.items() if any(both)
        }
        counts = {r.shard: (r.done, r.failed) for r in read_receipts(self.dataset, repair=False)}
        assert {name: both for name, both in counts.items() if any(both)} == {
            name: (len(done), len(failed)) for name, (done, failed) in wanted.items() if done or failed
        }
        faults = verify_output(self.dataset.uri).faults
        assert [fault for fault in faults if "its marker is missing" not in fault] == []


@pytest.fixture(autouse=True)
def folded_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fold makes a snapshot."""
    monkeypatch.setattr(progress, "FOLD_ABOVE", 0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_folding_beside_commits_loses_nothing(layout: Layout, tmp_path: Path) -> None:
    """A run folds receipts while its workers commit."""
    dataset = Dataset.begin(open_store(str(tmp_path)), make_format(layout), create=True)
    shards = [make_shard(ROWS, f"{number:016x}", first=ROWS * number) for number in range(40)]
    with ThreadPoolExecutor(4) as workers:
        commits = [
            workers.submit(attempt, dataset, shard, (0,) if n % 5 == 0 else ()) for n, shard in enumerate(shards)
        ]
        while not all(commit.done() for commit in commits):
            fold_receipts(dataset)
    assert {receipt.shard: (receipt.done, receipt.failed) for receipt in read_receipts(dataset, repair=False)} == {
        shard.id: (ROWS - (n % 5 == 0), int(n % 5 == 0)) for n, shard in enumerate(shards)
    }
    assert verify_output(dataset.uri).faults == []


TestOutputs = pytest.mark.slow(Outputs.TestCase)
TestOutputs.settings = settings(
    max_examples=12, stateful_step_count=16, deadline=None, suppress_health_check=list(HealthCheck)
)
