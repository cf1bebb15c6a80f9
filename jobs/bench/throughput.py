"""Steady-state images a second of `batchgen run` against a bare diffusers loop in one process.

`python jobs/bench/throughput.py [--model builtin] [--rows 256] [--batch-size 8] [--steps 25] [--workers N]
 [--device auto] [--repeats 3] [--json]`

Both sides take the same manifest (one batch key, distinct prompts, a seed a row, guidance 7.5, the model's scheduler),
the same batch size and precision. `run` is the real command line in a process of its own with a Ray of its own, and
writes to a temporary folder; the bare loop writes nothing. They alternate, run, bare, run, bare, so that a machine that
drifts does so under both. How the steady state is taken from the receipts is in `steady.py`.

On CPU the bare loop has all cores, as all workers of the run together. On CUDA it has one GPU, so it is multiplied by
the number of the run's workers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import corpus
from machine import QUIET, batchgen, describe, describe_line
from steady import Interval, Steady, steady

from batchgen.models.catalog import Source, find_model

__all__ = ["Bare", "Pair", "Run", "Setting", "main"]

GOAL = 0.85  # of the bare loop on CPU: what the project promises
# Shards of each worker. The first is left out, at the end part of another is: of 8 that leaves 3/4 of the rows to
# measure, in at least 7 commits of every worker. More would mean shards of a single micro-batch, where the cost of a
# commit, 10 to 30 ms, is paid for every call; by default a shard has 8 of them, so this errs against the run.
SHARDS_A_WORKER = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is measured."""

    model: str
    rows: int
    batch_size: int
    steps: int
    workers: int
    device: str

    @property
    def shard_rows(self) -> int:
        """Whole micro-batches, so that every worker gets at least `SHARDS_A_WORKER` shards if there are rows enough."""
        return max(1, self.rows // (self.workers * SHARDS_A_WORKER * self.batch_size)) * self.batch_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One `batchgen run`."""

    steady: Steady
    device: str
    images: int
    first_commit: float  # seconds from the start of the command
    total: float  # seconds from the start of the command to its end


@dataclass(frozen=True, kw_only=True, slots=True)
class Bare:
    """One bare loop."""

    images: int
    seconds: float  # without loading and warm-up
    rate: float
    device: str
    threads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One repeat: a run and the bare loop after it."""

    run: Run
    bare: Bare

    @property
    def loops(self) -> int:
        """Bare loops that would use what the run used."""
        return 1 if self.bare.device == "cpu" else self.run.steady.workers

    @property
    def ratio(self) -> float:
        """Run over bare, in the steady state."""
        return self.run.steady.rate / (self.bare.rate * self.loops)

    @property
    def ratio_with_tail(self) -> float:
        """The same to the last commit."""
        return self.run.steady.with_tail / (self.bare.rate * self.loops)


def measure_run(setting: Setting, manifest: Path, output: Path) -> Run:
    """Run the product once on a fresh output.

    Raises:
        SystemExit: it fails, or too few shards came out.
    """
    command = batchgen("run", str(manifest), "--output", str(output), "--model", setting.model)
    command += ["--batch-size", str(setting.batch_size), "--shard-rows", str(setting.shard_rows)]
    command += ["--workers", str(setting.workers), "--device", setting.device]
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True)
    total = time.time() - started
    if done.returncode:
        raise SystemExit(f"batchgen run ended with {done.returncode}: {done.stderr[-2000:]}")
    receipts = read_receipts(output)
    intervals = [_interval(receipt) for receipt in receipts]
    images = sum(interval.images for interval in intervals)
    if images != setting.rows:
        raise SystemExit(f"batchgen run made {images} of {setting.rows} images")
    workers = _workers(output)
    if workers != setting.workers:
        raise SystemExit(f"batchgen run took {workers} of {setting.workers} workers: too few rows for so many")
    try:
        found = steady(intervals, workers)
    except ValueError as error:
        raise SystemExit(f"{setting.rows} rows do not show a steady state: {error}") from error
    return Run(
        steady=found,
        device=receipts[0]["device"],
        images=images,
        first_commit=min(interval.finished for interval in intervals) - started,
        total=total,
    )


def measure_bare(setting: Setting, manifest: Path) -> Bare:
    """Run the bare loop once, in a process of its own as `run` is.

    Raises:
        SystemExit: it fails.
    """
    model = find_model(setting.model)
    if model.source is not Source.FOLDER:
        raise SystemExit("the bare loop loads 'builtin' and diffusers folders only")
    command = [sys.executable, str(Path(__file__).with_name("bare.py")), str(manifest), "--model", model.location]
    command += ["--batch-size", str(setting.batch_size), "--device", setting.device]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the bare loop ended with {done.returncode}: {done.stderr[-2000:]}")
    return Bare(**json.loads(done.stdout))


def read_receipts(output: Path) -> list[dict[str, Any]]:
    """All receipts of an output that one run made."""
    return [json.loads(file.read_text()) for file in sorted((output / ".batchgen" / "receipts").glob("*.json"))]


def _interval(receipt: dict[str, Any]) -> Interval:
    finished = receipt["finished"]
    return Interval(started=finished - receipt["seconds"], finished=finished, images=receipt["done"])


def _workers(output: Path) -> int:
    record = next((output / ".batchgen" / "runs").glob("*/run.json"))
    return int(json.loads(record.read_text())["workers"])


def _default_workers(device: str) -> int:
    """As `run` chooses: one a GPU, one a core. Given to it in the end, since the shard size here depends on it."""
    gpus = [] if device == "cpu" else describe()["gpus"]
    return len(gpus) or os.cpu_count() or 1


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _report(about: dict[str, Any], setting: Setting, pairs: Sequence[Pair]) -> str:
    ratio = statistics.median(pair.ratio for pair in pairs)
    runs = [pair.run for pair in pairs]
    goal = ""
    if runs[0].device == "cpu":
        verdict = "not judged" if about["load_before"] > QUIET else "met" if ratio >= GOAL else "MISSED"
        goal = f"; goal on CPU {GOAL}: {verdict}"
    return "\n".join(
        [
            describe_line(about),
            f"{setting.model}, {setting.rows} rows of {setting.steps} steps, batches of {setting.batch_size}, "
            f"shards of {setting.shard_rows}, {setting.workers} workers on {runs[0].device}; "
            f"median (least to most) of {len(pairs)}",
            f"run, images/s:      {_spread([run.steady.rate for run in runs])}, all workers busy; "
            f"{_spread([run.steady.with_tail for run in runs])} to the last commit",
            f"bare, images/s:     {_spread([pair.bare.rate * pair.loops for pair in pairs])}, "
            f"{pairs[0].bare.threads} threads",
            f"ratio:              {_spread([pair.ratio for pair in pairs])}{goal}; "
            f"{_spread([pair.ratio_with_tail for pair in pairs])} to the last commit",
            f"pipeline's share:   {_spread([run.steady.busy for run in runs])} of the workers' time in the window of "
            f"{statistics.median(run.steady.window for run in runs):.1f} s",
            f"first commit, s:    {_spread([run.first_commit for run in runs])} from the start of the command",
            f"whole run, s:       {_spread([run.total for run in runs])}",
        ]
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--workers", type=int, help="default: one a GPU, or one a core")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    setting = Setting(
        model=arguments.model,
        rows=arguments.rows,
        batch_size=arguments.batch_size,
        steps=arguments.steps,
        workers=arguments.workers or _default_workers(arguments.device),
        device=arguments.device,
    )
    about = describe()
    pairs = []
    with tempfile.TemporaryDirectory(prefix="batchgen-throughput-") as name:
        folder = Path(name)
        manifest = corpus.write(folder / "manifest.parquet", corpus.uniform, setting.rows, setting.steps)
        for number in range(arguments.repeats):
            run = measure_run(setting, manifest, folder / f"output-{number}")
            pairs.append(Pair(run=run, bare=measure_bare(setting, manifest)))
            pair = pairs[-1]
            print(
                f"repeat {number + 1}: run {run.steady.rate:.3f}, bare {pair.bare.rate:.3f} images/s, "
                f"ratio {pair.ratio:.3f}",
                file=sys.stderr,
                flush=True,
            )
    if arguments.as_json:
        found = [{**asdict(pair), "ratio": pair.ratio, "ratio_with_tail": pair.ratio_with_tail} for pair in pairs]
        ratio = statistics.median(pair.ratio for pair in pairs)
        print(json.dumps({"machine": about, "setting": asdict(setting), "ratio": ratio, "pairs": found}))
    else:
        print(_report(about, setting, pairs))


if __name__ == "__main__":
    main()
