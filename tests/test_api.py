"""The package's functions, as somebody calls them who writes no command line."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import WriteManifest

import batchgen
from batchgen.engine.loop import Control, signals
from batchgen.errors import InputError, ManifestProblems

ROOT = Path(__file__).parents[1]


def test_what_is_offered_is_documented() -> None:
    """`__all__` is sorted, and everything in it says what it does, under the name that the package gives it."""
    assert batchgen.__all__ == sorted(batchgen.__all__)
    for name in set(batchgen.__all__) - {"__version__"}:
        function = getattr(batchgen, name)
        assert (function.__module__, function.__name__) == ("batchgen", name)
        assert function.__doc__ and "Raises:" in function.__doc__, name


def test_the_readmes_example_runs(tmp_path: Path, ray_address: str) -> None:
    """What the README shows of runs from Python, and once more in the process itself.

    Names of functions must outlive their first call.
    """
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = readme.partition("## Runs from Python")[2].partition("```python\n")[2].partition("```")[0]
    (tmp_path / "manifests").symlink_to(ROOT / "manifests")
    again = example.replace("load_job(", "load_job(workers=0, source=")
    assert again != example
    script = f"{example}\n{again}".replace("limit=4", "limit=2")
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "RAY_ADDRESS": ray_address},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "24 rows, 24 to make",
        "2 done, 0 failed, 22 left",
        "24 rows, 22 to make",
        "4 done, 0 failed, 20 left",
    ]
    assert "2 of 24 rows to make" in done.stderr
    assert len(list(batchgen.open_dataset(str(tmp_path / "out" / "python")).rows())) == 4


def test_check_gives_all_problems_or_what_was_found(write_manifest: WriteManifest) -> None:
    good = write_manifest("good.jsonl", [{"prompt": "a", "steps": 3}, {"prompt": "b", "steps": 4}])
    found = batchgen.check(batchgen.load_job(str(good)))
    assert (found.rows, list(found.files)) == (2, [str(good)])
    assert any("steps" in line for line in found.notices)
    bad = write_manifest("bad.jsonl", [{"prompt": "a", "steps": -1}, {"prompt": "b", "scheduler": "none"}])
    with pytest.raises(ManifestProblems) as caught:
        batchgen.check(batchgen.load_job(str(bad)))
    assert [(problem.row, problem.column) for problem in caught.value.log.shown] == [(1, "steps"), (2, "scheduler")]


def test_a_plan_needs_no_output(write_manifest: WriteManifest) -> None:
    manifest = write_manifest("m.jsonl", [{"prompt": str(number)} for number in range(10)])
    summary = batchgen.plan(batchgen.load_job(str(manifest), batch_size=4, shard_rows=4, device="cpu"))
    assert (summary.rows, summary.pending, summary.shards, summary.padded) == (10, 10, 3, 2)


def test_a_run_without_an_output_starts_nothing(write_manifest: WriteManifest) -> None:
    manifest = write_manifest("m.jsonl", [{"prompt": "a"}])
    with pytest.raises(InputError, match="no output"):
        batchgen.run(batchgen.load_job(str(manifest)))


def test_a_run_may_be_in_any_thread() -> None:
    """Python lets the main thread alone set handlers of signals; elsewhere a run goes without."""
    entered: list[bool] = []

    def enter() -> None:
        with signals(Control(), lambda _line: None):
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [True]
