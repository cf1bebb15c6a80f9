"""How far a run is and how long it takes, the same to `run`, `plan` and `status`; how a watch ends."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import RunCli
from test_commit import attempt, make_format
from test_commit import make_shard as make_stored
from test_plan import key_of, make_row
from test_status import RUN, make_record

from batchgen.dataset import lease
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.lease import Lease
from batchgen.dataset.runs import write_run
from batchgen.errors import ErrorClass
from batchgen.estimate import Measured, PlanSummary, summarize
from batchgen.index import Counts, Group
from batchgen.options import ImageFormat, Layout
from batchgen.report.display import PlainConsole, RunDisplay
from batchgen.report.status import follow, read_status
from batchgen.rows import Receipt, Shard, ShardProgress, failed_row, make_shard
from batchgen.sharding import Sizing, key_kind, settle_paces
from batchgen.storage import open_store
from batchgen.tally import LiveProgress, Tally

SMALL, LARGE = (key_of(make_row(0, width=size, height=size)) for size in (64, 128))
SIZING = Sizing(device="cpu", workers=2, batch_size=4)


def shard_of(first: int, count: int, key: str = SMALL) -> Shard:
    return make_shard(key, 4, [make_row(number) for number in range(first, first + count)])


def receipt_of(shard: Shard, seconds: float, failed: int = 0, run: str = RUN) -> Receipt:
    return Receipt(
        shard=shard.id, attempt="a", run=run, done=len(shard.rows) - failed, key=shard.key, device="cpu",
        failures=[failed_row(row, ErrorClass.NAN, "nan") for row in shard.rows[:failed]],
        seconds=seconds, finished=0.0,
    )  # fmt: skip


def planned(
    left: Sequence[tuple[str, int]], measured: Measured, live: LiveProgress | None = None, sizing: Sizing = SIZING
) -> PlanSummary:
    """What `plan` says of rows that are left."""
    groups = [Group(key=key, total=rows, pending=rows) for key, rows in left]
    computed = Counter({kind: rows for kind, rows, _ in live.in_work} if live else {})
    return summarize(groups, sizing, measured, Layout.FILES, ImageFormat.PNG, failed=0, outdated=0, computed=computed)


def test_made_is_not_committed() -> None:
    """Incident: 'starting workers 0/260' stood for 18 s while 112 images lay in the bucket."""
    tally = Tally(RUN, [(SMALL, 40)], 2, Measured("cpu"))
    now = tally.progress()
    assert (now.workers, now.made, now.committed, now.images_a_second, now.estimate) == (0, 0, 0, None, None)
    first, second = shard_of(0, 20), shard_of(20, 20)
    tally.hold([[(first, ShardProgress(made=7, computed=8, seconds=4.0))], [(second, None)]])
    now = tally.progress()
    assert (now.workers, now.made, now.committed) == (2, 7, 0)
    assert now.images_a_second == pytest.approx(2 * 8 / 4.0)
    assert now.estimate is not None and now.estimate.seconds == pytest.approx(20 * 0.5)  # the second worker's shard
    tally.commit(first, receipt_of(first, 10.0, failed=1))
    now = tally.progress()
    assert (now.made, now.committed, now.failed) == (19, 19, 1)
    tally.hold([[], [(second, ShardProgress(made=3, computed=4, seconds=2.0))]])
    now = tally.progress()
    assert (now.made, now.committed) == (22, 19)
    # one worker has all that is left, and the other cannot help it
    assert now.estimate is not None and now.estimate.seconds == pytest.approx(now.estimate.device_seconds)


def test_a_second_attempt_is_no_second_image() -> None:
    """A worker that died begins its shard anew; what it measured stays measured, what it made is lost."""
    tally = Tally(RUN, [(SMALL, 20)], 1, Measured("cpu"))
    shard = shard_of(0, 20)
    tally.hold([[(shard, ShardProgress(made=12, computed=12, seconds=6.0))]])
    tally.hold([])
    assert tally.progress().made == 0
    for _ in range(3):
        tally.hold([[(shard, ShardProgress(made=4, computed=4, seconds=2.0))]])
    now = tally.progress()
    assert now.made == 4 and now.images_a_second == pytest.approx(2.0)
    assert now.estimate is not None and now.estimate.device_seconds == pytest.approx(16 * 0.5)


def test_one_estimate_for_plan_run_and_status(tmp_path: Path) -> None:
    """Incident: 23 s, 106 s and another rate at the same moment. Sizes differ, and a shard is in work."""
    left = [(LARGE, 60), (SMALL, 200)]
    shards = [shard_of(0, 20, LARGE), shard_of(20, 20, LARGE), shard_of(40, 20, SMALL)]
    done = receipt_of(shards[0], 20.0)
    measured = Measured("cpu")
    measured.add(receipt_of(shards[2], 500.0, run="20260101T000000-000"))  # a slower machine
    tally = Tally(RUN, left, 2, measured)
    tally.commit(shards[0], done)
    tally.hold([
        [(shards[1], ShardProgress(made=7, computed=8, seconds=8.0))],
        [(shards[2], ShardProgress(made=8, computed=12, seconds=3.0))],
    ])  # fmt: skip
    now = tally.progress()
    expected = (32 * 1.0 + 188 * 0.25) / 2
    assert now.estimate is not None and now.estimate.is_measured
    assert now.estimate.seconds == pytest.approx(expected)

    dataset = Dataset.begin(open_store(str(tmp_path / "out")), make_format(), create=True)
    write_run(dataset.store, make_record(rows=260, workers=2, outcome="running"))
    with Lease(dataset.store, RUN) as held:
        held.said = tally.live(now).content()
        dataset.store.write(lease.KEY, held._content())
        status = read_status(dataset.uri)
    assert (status.made, status.done, status.workers, status.estimated) == (35, 0, 2, False)
    assert status.images_a_second == pytest.approx(now.images_a_second)
    assert status.seconds_left == pytest.approx(expected, abs=1)

    live = LiveProgress.read(json.loads(json.dumps(tally.live(now).content())))
    assert live is not None
    seen = Measured("cpu")
    seen.add(receipt_of(shards[2], 500.0, run="20260101T000000-000"))
    seen.add(done)
    for kind, rows, seconds in live.in_work:
        seen.count(RUN, kind, rows, seconds)
    plan = planned([(LARGE, 40), (SMALL, 200)], seen, live)
    assert plan.seconds == pytest.approx(expected) and not plan.estimated


def test_an_estimate_says_that_it_is_one() -> None:
    """What no image of was made is scaled from others of the model; without any it is unknown, as on another device."""
    measured = Measured("cpu")
    assert planned([(SMALL, 10)], measured).seconds is None
    measured.add(receipt_of(shard_of(0, 20), 10.0))
    assert planned([(SMALL, 10)], measured).estimated is False
    both = planned([(LARGE, 10), (SMALL, 10)], measured)
    assert both.estimated and both.device_seconds == pytest.approx(10 * 2.0 + 10 * 0.5)
    other = Measured("cuda")
    other.add(receipt_of(shard_of(0, 20), 10.0))
    assert planned([(SMALL, 10)], other).seconds is None


def test_shards_take_about_a_minute() -> None:
    """However quick a model is; --shard-rows wins, and few rows are shared out before that."""
    work = key_kind(SMALL).work / 1e6
    for a_second in (0.01, 0.5, 5.0, 40.0):
        sizing = Sizing(device="cpu", workers=2, batch_size=4, paces={"builtin": 1 / a_second / work})
        assert abs(sizing.shard(SMALL, 10**6) - 60 * a_second) <= 4
        assert sizing.shard(SMALL, 32) <= 4
    assert Sizing(device="cpu", workers=2, batch_size=4, shard_rows=8).shard(SMALL, 10**6) == 8


def test_a_resumed_run_cuts_as_the_one_before() -> None:
    """Paces hold within a factor of two, so that measuring alone moves no shard; beyond it, what is measured counts."""
    first = settle_paces(["m"], "cpu", {}, {})
    assert settle_paces(["m"], "cpu", {"m": first["m"] * 1.9}, first) == first
    assert settle_paces(["m"], "cpu", {"m": first["m"] * 0.6}, first) == first
    assert settle_paces(["m"], "cpu", {"m": first["m"] * 3}, first) == {"m": first["m"] * 3}
    assert settle_paces(["m"], "cpu", {"m": 0.0}, first) == first


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_watcher_sees(terminal: bool) -> None:
    """The display leaves 'starting workers' as soon as one is up, and tells made from committed."""
    stream = io.StringIO()
    display = RunDisplay(PlainConsole(file=stream, force_terminal=terminal, width=100, color_system=None))
    tally, shard = Tally(RUN, [(SMALL, 40)], 2, Measured("cpu")), shard_of(0, 20)
    display.begin(Counts(total=40, done=0, failed=0, pending=40), 40, 2, "cpu")
    display.progressed(tally.progress())
    tally.hold([[(shard, ShardProgress(made=7, computed=8, seconds=4.0))]])
    display.progressed(tally.progress())
    if terminal:
        assert display._progress is not None
        display._progress.refresh()
        assert "7/40 made, 0 committed, 2.00 images/s, 8 s to go" in stream.getvalue()
    tally.commit(shard, receipt_of(shard, 10.0))
    display.committed(receipt_of(shard, 10.0), tally.progress())
    display.end()
    assert "20/40 made, 20 committed, 2.00 images/s, 5 s to go" in stream.getvalue()
    assert stream.getvalue().count("starting workers") <= 20 * terminal


@pytest.mark.parametrize(
    ("outcome", "failed", "code"),
    [
        ("running", (), 5),
        ("finished", (), 0),
        ("finished", (1,), 1),
        ("stopped by SIGTERM", (), 3),
        ("failed: the store is gone", (), 4),
    ],
)
def test_a_watch_ends_as_its_run(
    outcome: str, failed: tuple[int, ...], code: int, batchgen: RunCli, tmp_path: Path
) -> None:
    """A run that died has an exit code of its own; a script that waits for a run learns how it ended."""
    dataset = Dataset.begin(open_store(str(tmp_path / "out")), make_format(), create=True)
    attempt(dataset, make_stored(4, "a" * 16), failed=failed)
    write_run(dataset.store, make_record(run="run-1", rows=4, outcome=outcome))
    done = batchgen("status", dataset.uri, "--watch", "--json")
    assert done.returncode == code, done.stderr
    status = json.loads(done.stdout)
    assert (status["running"], status["made"], status["seconds_left"]) == (False, 4 - len(failed), None)
    assert ("died" in done.stderr) == (code == 5)


def test_a_watch_goes_on_while_a_run_lives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also when no row is left: how it ends is still to come."""
    monkeypatch.setattr("batchgen.report.status.WATCH_EVERY", 0.0)
    dataset = Dataset.begin(open_store(str(tmp_path / "out")), make_format(), create=True)
    attempt(dataset, make_stored(4, "a" * 16))
    write_run(dataset.store, make_record(run="run-1", rows=4, outcome="running"))
    looks = follow(dataset.uri)
    with Lease(dataset.store, "run-1"):
        assert [next(looks).outcome, next(looks).left] == ["running", 0]
        write_run(dataset.store, make_record(run="run-1", rows=4))
    assert [status.outcome for status in looks] == ["finished"]
