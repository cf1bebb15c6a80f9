"""The resume soak: runs killed at random moments and resumed must give the dataset of an uninterrupted run.

`python jobs/bench/kills.py --rows 200 --kills 10 [--seed S] [--model builtin] [--layout files] [--keep FOLDER]`
`python jobs/bench/kills.py --rows 500 --kills 200 --steps 25 --within 30`

One uninterrupted run is the reference. Each round starts the same command on a fresh output, kills with SIGKILL at a
moment drawn evenly from the reference's duration (Ray's start and the loading of the model included), then gives the
same command again at once and lets it end. With `--within` a round is a series: each run of the output is killed at a
moment drawn from so many seconds, until one ends before its moment comes. Victims, in equal shares and drawn order:

- driver: the process of `batchgen run` alone; Ray and the workers are left to find out by themselves
- worker: one Ray worker process of the run, drawn; the run goes on, in a series until another moment, drawn from there
- tree:   every process of the run, as if the machine lost power

Then: exit code 0 of each run that was let end, and of one more, which finds nothing to do; every row once and none
lost, all columns equal, image bytes equal to the reference's and to their sha256 column, shards that were committed at
a kill not made again, `batchgen verify --deep` clean. Exit code 1 otherwise.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import corpus
from dataset import attempts, compare, count_images, read
from machine import batchgen, describe, describe_line
from processes import family, is_rays_own, kill, kill_all, start, survivors, title, workers

__all__ = ["Round", "Soak", "Victim", "main"]

GRACE = 10.0  # seconds in which what is left of a killed run may still be dying, once the one after it is at its end
TOO_LATE = 2  # rounds for each wanted kill, at most: a run may end before its moment comes


class Victim(StrEnum):
    """What is killed."""

    DRIVER = "driver"
    WORKER = "worker"
    TREE = "tree"


@dataclass(kw_only=True, slots=True)
class Round:
    """What became of one output."""

    number: int
    output: Path
    runs: int = 0
    kills: int = 0  # none where the run ended before its moment
    committed: dict[str, tuple[str, int]] = field(default_factory=dict)  # at the last kill
    orphans: list[Any] = field(default_factory=list)  # all processes of the run that was killed last
    lingering: list[str] = field(default_factory=list)  # those that outlived the next run by GRACE; they are killed
    seconds: float = 0.0  # from the start of the run that was let end
    again: int | None = None  # images stored more than once, to the end; the layout `parquet` does not show it
    differences: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The round in one line."""
        lingering = f", left over: {', '.join(self.lingering)}" if self.lingering else ""
        verdict = f"{len(self.differences)} DIFFERENCES" if self.differences else "same"
        return (
            f"round {self.number}: {self.kills} kills in {self.runs} runs, the last one ended after "
            f"{self.seconds:.1f} s, {_again(self.again)}{lingering}: {verdict}"
        )

    def note_kill(self, victim: str, moment: float) -> None:
        """Say what was killed, and hold what is committed against what was at the kill before."""
        self.kills += 1
        before = len(self.differences)
        self.look()
        rows = sum(rows for _, rows in self.committed.values())
        said = f"  kill {self.kills}: {victim} after {moment:.1f} s, {rows} rows done"
        print(said, *self.differences[before:], sep="\n    ", flush=True)  # a series goes on for hours

    def look(self) -> None:
        """Make sure that what was committed still is, by the same attempts."""
        now = attempts(self.output)
        for shard, (attempt, _) in self.committed.items():
            if shard not in now or now[shard][0] != attempt:
                self.differences.append(f"shard {shard} was committed at a kill and is made again, or lost")
        self.committed = now

    def bury(self) -> None:
        """End what is left of the run that was killed last."""
        self.lingering += _bury(self.orphans)
        self.orphans = []


@dataclass(frozen=True, kw_only=True, slots=True)
class Soak:
    """What stays the same over all rounds."""

    folder: Path
    arguments: tuple[str, ...]  # of `batchgen run`, without the output
    rows: int
    layout: str
    draw: random.Random
    victims: Iterator[Victim]
    limit: float = 1800.0  # seconds a run may take; a run that hangs is a difference

    @property
    def reference(self) -> Path:
        return self.folder / "reference"

    def run_reference(self) -> float:
        """Make the reference; returns the seconds it took.

        Raises:
            SystemExit: it fails, or does not hold every row once: nothing could be compared with it.
        """
        began = time.monotonic()
        code = self._end_of(self._start(self.reference, 1))
        seconds = time.monotonic() - began
        ids = [made.cells["id"] for made in read(self.reference)]
        if code or len(ids) != self.rows or len(set(ids)) != self.rows:
            raise SystemExit(f"the reference ended with exit {code} and {len(ids)} rows; see {self.folder}")
        if wrong := [*compare(self.reference, self.reference), *_verify(self.reference)]:
            raise SystemExit(f"the reference is not whole: {wrong[0]}")
        return seconds

    def run_round(self, number: int, within: float, most: int) -> Round:
        """Start, kill, and start again, until a run ends before its moment or no kill is left; then compare.

        Args:
            number: names the output.
            within: seconds from which moments are drawn.
            most: kills.
        """
        found = Round(number=number, output=self.folder / f"round-{number}")
        while self._run(found, within, most):
            pass
        seconds = found.seconds
        self._run(found, within, 0)  # finds nothing to do
        found.seconds = seconds
        found.bury()
        found.look()
        found.differences += [*compare(self.reference, found.output), *_verify(found.output)]
        if self.layout == "files":
            found.again = count_images(found.output) - self.rows
        return found

    def _run(self, found: Round, within: float, most: int) -> bool:
        """Start a run and kill at drawn moments, while there are kills; whether that was its end, else it has ended."""
        found.runs += 1
        run = self._start(found.output, found.runs)
        began = time.monotonic()
        while found.kills < most:
            moment = self.draw.uniform(0, within)
            with suppress(subprocess.TimeoutExpired):
                run.wait(moment)
            if not (members := family(run)):
                break
            found.note_kill(self._kill(run, next(self.victims)), moment)
            if run.poll() is not None:
                found.bury()
                found.orphans = members
                return True
        if code := self._end_of(run):
            found.differences.append(f"run {found.runs} ended with exit {code}")
        found.seconds = time.monotonic() - began
        return False

    def _start(self, output: Path, number: int) -> subprocess.Popen[bytes]:
        log = output.with_suffix(f".{number}.log")
        return start(batchgen("run", *self.arguments, "--output", str(output)), log)

    def _kill(self, run: subprocess.Popen[bytes], victim: Victim) -> str:
        """Kill; returns what was killed. Where there is no worker yet, the driver is killed instead."""
        if victim is Victim.TREE:
            return f"{victim} of {len(kill_all(run))}"
        candidates = sorted(workers(family(run)), key=lambda member: member.pid)
        if victim is Victim.WORKER and candidates:
            chosen = self.draw.choice(candidates)
            name = title(chosen)
            kill(chosen)
            return f"{victim} {name}"
        run.kill()
        run.wait()
        return Victim.DRIVER if victim is Victim.DRIVER else f"{Victim.DRIVER} (there was no worker yet)"

    def _end_of(self, run: subprocess.Popen[bytes]) -> int:
        """The run's exit code; one that hangs is killed, and its code is that of the kill."""
        try:
            return run.wait(self.limit)
        except subprocess.TimeoutExpired:
            kill_all(run)
            return run.wait()


def _again(images: int | None) -> str:
    return "images made again unknown" if images is None else f"{images} images made again"


def _verify(output: Path) -> list[str]:
    """Faults that `batchgen verify --deep` finds."""
    done = subprocess.run(batchgen("verify", "--deep", "--json", str(output)), capture_output=True, text=True)
    if done.returncode:
        faults = json.loads(done.stdout)["faults"] if done.stdout.startswith("{") else [done.stderr.strip()]
        return [f"verify: {fault}" for fault in faults]
    return []


def _bury(members: list[Any]) -> tuple[str, ...]:
    """What of a killed run outlives it by `GRACE` seconds, by name, without Ray's agents; all of it is killed."""
    patience = time.monotonic() + GRACE
    while (left := [one for one in survivors(members) if not is_rays_own(one)]) and time.monotonic() < patience:
        time.sleep(0.5)
    names = tuple(title(member) for member in left)
    for member in survivors(members):
        kill(member)
    return names


def _victims(draw: random.Random) -> Iterator[Victim]:
    """All kinds in equal shares, each three in an order of their own."""
    while True:
        yield from draw.sample(list(Victim), len(Victim))


def soak(arguments: argparse.Namespace, folder: Path) -> int:
    """All rounds; returns the exit code."""
    draw = random.Random(arguments.seed)
    manifest = corpus.write(folder / "manifest.parquet", corpus.mixed, arguments.rows, arguments.steps)
    flags = {name: getattr(arguments, name) for name in ("model", "layout", "batch_size", "shard_rows", "workers")}
    given = [
        part
        for name, value in flags.items()
        if value is not None
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    soaking = Soak(
        folder=folder,
        arguments=(str(manifest), *given),
        rows=arguments.rows,
        layout=arguments.layout,
        draw=draw,
        victims=_victims(draw),
    )
    print(describe_line(describe()), flush=True)
    seconds = soaking.run_reference()
    print(f"reference: {arguments.rows} rows in {seconds:.1f} s; seed {arguments.seed}", flush=True)
    rounds: list[Round] = []
    while (left := arguments.kills - sum(one.kills for one in rounds)) and len(rounds) < arguments.kills * TOO_LATE:
        most = left if arguments.within else 1
        rounds.append(soaking.run_round(len(rounds) + 1, arguments.within or seconds, most))
        print(rounds[-1].line(), *(f"  {line}" for line in rounds[-1].differences[:20]), sep="\n", flush=True)
    bad = sum(bool(one.differences) for one in rounds)
    again = sum(one.again or 0 for one in rounds) if arguments.layout == "files" else None
    print(
        f"{'FAILED' if left or bad else 'OK'}: {arguments.kills - left} of {arguments.kills} kills, "
        f"{bad} rounds with differences, {_again(again)}"
    )
    return 1 if left or bad else 0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument(
        "--within", type=float, metavar="SECONDS", help="kill each run of an output, so soon after its start"
    )
    parser.add_argument("--seed", type=int, default=0, help="of victims and moments")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--shard-rows", type=int, default=8)
    parser.add_argument("--layout", choices=["files", "parquet"], default="files")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="an empty folder for outputs and logs; kept")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="batchgen-kills-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty")
    code = soak(arguments, folder)
    if code == 0 and arguments.keep is None:
        shutil.rmtree(folder)
    else:
        print(f"outputs and logs are in {folder}")
    sys.exit(code)


if __name__ == "__main__":
    main()
