"""The harnesses in jobs/bench: each runs at its smallest, and each verdict is seen to turn when it should.

The slow ones are the throughput (a run and a bare loop) and what needs the `soak` (three runs). All of it took 50 s on
2 cores with a load of 1 from others, 110 s with a load of 5.
"""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray]

BENCH = Path(__file__).parents[1] / "jobs" / "bench"
KILLED_ROWS = 16


@contextmanager
def _beside_scripts() -> Iterator[None]:
    sys.path.insert(0, str(BENCH))
    try:
        yield
    finally:
        sys.path.remove(str(BENCH))


def _module(name: str) -> Any:
    """A module of jobs/bench, which is no package: scripts find each other by their folder."""
    with _beside_scripts():
        return importlib.import_module(name)


def _bench(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, **variables})


# --- throughput


def test_throughput_measures_run_and_bare_loop(tiny_model: Path, ray_address: str) -> None:
    done = _bench(
        *("throughput.py", "--model", str(tiny_model), "--rows", "24", "--batch-size", "2", "--steps", "4"),
        *("--workers", "1", "--device", "cpu", "--repeats", "1", "--json"),
        RAY_ADDRESS=ray_address,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (pair,) = found["pairs"]
    assert pair["run"]["images"] == pair["bare"]["images"] == 24
    assert sum(pair["run"]["steady"]["shards"]) == 12
    assert 0 < pair["run"]["first_commit"] < pair["run"]["total"]
    assert 0 < pair["run"]["steady"]["busy"] < 1.3
    assert found["ratio"] == pytest.approx(pair["run"]["steady"]["rate"] / pair["bare"]["rate"])


def _shards(start: float, loading: float, each: float, count: int) -> list[Any]:
    """The shards of one worker, 10 images each, which take `each` seconds, the first `loading` more."""
    interval = _module("steady").Interval
    ends = [start + loading + each * (number + 1) for number in range(count)]
    starts = [start, *ends[:-1]]
    return [interval(started=s, finished=f, images=10) for s, f in zip(starts, ends, strict=True)]


def test_steady_rate_leaves_out_loading_and_the_idle_end() -> None:
    fast = _shards(0.0, 3.0, 2.0, 10)  # 5 images a second from 3 s to 23 s
    slow = _shards(1.5, 7.0, 4.0, 4)  # 2.5 images a second from 8.5 s to 24.5 s
    found = _module("steady").steady([*slow, *fast], 2)
    assert sorted(found.shards) == [4, 10]
    assert found.window == pytest.approx(23 - 12.5)
    assert found.rate == pytest.approx(7.5)
    assert found.busy == pytest.approx(1.0)
    assert found.with_tail == pytest.approx((7.5 * 10.5 + 2.5 * 1.5) / 12)


def test_steady_rate_charges_time_between_shards() -> None:
    interval = _module("steady").Interval
    shards = [interval(started=5.0 * n, finished=5.0 * n + 4.0, images=10) for n in range(8)]
    found = _module("steady").steady(shards, 1)
    assert found.rate == pytest.approx(2.0)
    assert found.busy == pytest.approx(0.8)


def test_steady_rate_of_too_few_shards_is_refused() -> None:
    with pytest.raises(ValueError, match="3 at least"):
        _module("steady").steady([*_shards(0, 1, 1, 9), *_shards(0.5, 1, 5, 2)], 2)


def test_commits_that_take_unequal_time_do_not_make_up_workers() -> None:
    interval = _module("steady").Interval
    late = [0.0, 0.6, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0]  # seconds that the commit of a shard of one second took
    shards = [interval(started=n + late[n], finished=n + 1 + late[n], images=4) for n in range(8)]
    found = _module("steady").steady(shards, 1)
    assert found.shards == (8,)
    assert found.rate == pytest.approx(4.0)


# --- planning


def test_planning_measures_the_child(tiny_model: Path) -> None:
    done = _bench("planning.py", "--model", str(tiny_model), "--rows", "50", "2000", "--help-calls", "2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [plan["rows"] for plan in found["plans"]] == [50, 2000]
    assert all(plan["keys"] == 8 and plan["seconds"] > 0 for plan in found["plans"])
    assert 0 < found["help"]["best"] <= found["help"]["median"]


@pytest.mark.parametrize("mib", [100, 300])
def test_planning_peak_memory_is_the_childs_own(mib: int) -> None:
    """A child's ru_maxrss counts what it was before exec; measured from pytest's large process it would be that."""
    code = (
        f"import sys; sys.path.insert(0, {str(BENCH)!r}); import planning; "
        f"print(planning.measure([sys.executable, '-c', 'x = b\"x\" * ({mib} << 20)']).peak_mib)"
    )
    peak = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert mib < peak < mib + 60


# --- kills


@pytest.fixture(scope="module")
def soak(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reference and one run that was killed and resumed."""
    folder = tmp_path_factory.mktemp("soak") / "kept"
    done = _bench(
        *("kills.py", "--model", str(tiny_model), "--rows", str(KILLED_ROWS), "--kills", "1", "--seed", "1"),
        *("--steps", "2", "--batch-size", "2", "--shard-rows", "2", "--workers", "1", "--keep", str(folder)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK: 1 of 1 kills, 0 rounds with differences" in done.stdout
    return folder


def _shard_with_images(output: Path) -> Path:
    return min((output / "data").glob("*/metadata.parquet"))


def _change_a_byte(output: Path) -> None:
    image = min(_shard_with_images(output).parent.glob("*/*.png"))
    data = bytearray(image.read_bytes())
    data[-20] ^= 1
    image.write_bytes(data)


def _lose_a_shard(output: Path) -> None:
    _shard_with_images(output).unlink()


def _lose_an_image(output: Path) -> None:
    marker = _shard_with_images(output)
    (marker.parent / pq.ParquetFile(marker).read(["file_name"])["file_name"][0].as_py()).unlink()


def _double_a_shard(output: Path) -> None:
    folder = _shard_with_images(output).parent
    shutil.copytree(folder, folder.with_name("0" * 32))


def _change_a_cell(output: Path) -> None:
    marker = _shard_with_images(output)
    table = pq.ParquetFile(marker).read()
    seeds = pa.array([seed + 1 for seed in table["seed"].to_pylist()], pa.int64())
    pq.write_table(table.set_column(table.schema.get_field_index("seed"), "seed", seeds), marker)


@pytest.mark.parametrize(
    ("doctor", "found"),
    [
        (_change_a_byte, "not those of the sha256 column"),
        (_change_a_byte, "not the reference's"),
        (_lose_a_shard, "is lost"),
        (_lose_an_image, "its image is missing"),
        (_double_a_shard, "is there 2 times"),
        (_change_a_cell, "seed is"),
    ],
)
def test_kills_notices(soak: Path, tmp_path: Path, doctor: Callable[[Path], None], found: str) -> None:
    compare = _module("dataset").compare
    doctored = tmp_path / "doctored"
    shutil.copytree(soak / "round-1", doctored)
    assert compare(soak / "reference", doctored) == []
    doctor(doctored)
    assert any(found in line for line in compare(soak / "reference", doctored))


def test_kills_notices_what_verify_finds(soak: Path, tmp_path: Path) -> None:
    doctored = tmp_path / "doctored"
    shutil.copytree(soak / "round-1", doctored)
    assert _module("kills")._verify(doctored) == []
    _change_a_byte(doctored)
    assert any("sha256 differs" in line for line in _module("kills")._verify(doctored))


def test_kills_goes_on_until_no_kill_is_left(soak: Path) -> None:
    """A series over an output that is whole, so that a run takes seconds: killed three times, let end, asked again."""
    kills = _module("kills")
    shutil.copytree(soak / "reference", soak / "round-7")
    series = kills.Soak(
        folder=soak,
        arguments=(str(soak / "manifest.parquet"), "--model", "no such model"),
        rows=KILLED_ROWS,
        layout="files",
        draw=random.Random(0),
        victims=iter([kills.Victim.TREE, kills.Victim.DRIVER, kills.Victim.WORKER]),
    )
    found = series.run_round(7, 0.1, 3)
    assert (found.kills, found.runs, found.again) == (3, 5, 0)
    assert found.differences == ["run 4 ended with exit 2", "run 5 ended with exit 2"]
    found.committed[min(found.committed)] = ("another attempt", 2)
    found.look()
    assert "is made again, or lost" in found.differences[-1]


def test_kills_reads_rows_of_every_shard(soak: Path) -> None:
    attempts = _module("dataset").attempts(soak / "reference")
    assert sum(rows for _, rows in attempts.values()) == KILLED_ROWS
    assert len(_module("dataset").read(soak / "reference")) == KILLED_ROWS


def test_kills_refuses_a_layout_it_does_not_know(tmp_path: Path) -> None:
    """Incident: an output of a third layout was read as one without rows, and was equal to any other of that kind."""
    kept, read = Path(__file__).parent / "fixtures" / "outputs", _module("dataset").read
    assert {made.image == made.cells["sha256"] for name in ("files", "parquet") for made in read(kept / name)} == {True}
    shutil.copytree(kept / "files", tmp_path / "out")
    record = tmp_path / "out" / ".batchgen" / "output.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "layout": "tar"}))
    with pytest.raises(ValueError, match="layout 'tar'; known here are files, parquet"):
        read(tmp_path / "out")


def test_kill_all_takes_every_descendant_and_nothing_else(tmp_path: Path) -> None:
    processes = _module("processes")
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        # the child ignores SIGTERM and has a session of its own, as Ray's processes may
        script = "import subprocess, time; subprocess.Popen(['setsid', 'sleep', '60']); time.sleep(60)"
        run = processes.start([sys.executable, "-c", script], tmp_path / "log")
        deadline = time.monotonic() + 20
        while len(members := processes.family(run)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(members) == 2
        processes.kill_all(run)
        assert run.returncode == -signal.SIGKILL
        time.sleep(0.2)
        assert processes.survivors(members) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
