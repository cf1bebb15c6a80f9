"""The resume soak: runs killed at random moments and resumed must give the dataset of an uninterrupted run.

`python jobs/bench/kills.py --rows 200 --kills 10 [--seed S] [--model builtin] [--layout files] [--keep FOLDER]`

One uninterrupted run is the reference. Each round starts the same command on a fresh output, kills with SIGKILL at a
moment drawn evenly from the reference's duration (Ray's start and the loading of the model included), then gives the
same command again at once and lets it end. Victims, in equal shares and drawn order:

- driver: the process of `batchgen run` alone; Ray and the workers are left to find out by themselves
- worker: one Ray worker process of the run, drawn; the run goes on and must end by itself with exit code 0
- tree:   every process of the run, as if the machine lost power

Then: every row once and none lost, all columns equal, image bytes equal to the reference's and to their sha256
column, shards that were committed at the kill not made again, `batchgen verify --deep` clean. Exit code 1 otherwise.
"""

import argparse
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import corpus
from dataset import attempts, compare, count_images, read
from machine import batchgen, describe, describe_line
from processes import family, is_rays_own, kill, kill_all, start, survivors, title, workers

__all__ = ["Round", "Soak", "Victim", "main"]

GRACE = 10.0  # seconds after a resumed run's end in which what is left of the killed one may still be dying
TOO_LATE = 2  # rounds for each wanted kill, at most: a run may end before its moment comes


class Victim(StrEnum):
    """What is killed."""

    DRIVER = "driver"
    WORKER = "worker"
    TREE = "tree"


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What one round did and found."""

    number: int
    victim: str  # with what became of the plan, where there was no such process
    killed: bool  # False where the run had ended before
    after: float  # seconds from the start to the kill
    done: int  # rows in committed shards right after the kill
    again: int | None  # images stored more than once, to the end; the layout `parquet` does not show it
    went_on: int | None  # exit code of the run that lost a worker; None where the driver was killed
    resumed: int  # exit code of the same command given again
    seconds: float  # the resumed run took
    lingering: tuple[str, ...]  # processes of the killed run alive GRACE after the resumed one's end; they are killed
    differences: tuple[str, ...]

    def line(self) -> str:
        """The round in one line."""
        how = f"killed {self.victim} after {self.after:.1f} s" if self.killed else f"ended before {self.after:.1f} s"
        went_on = "" if self.went_on is None else f"went on to exit {self.went_on}, "
        lingering = f", left over: {', '.join(self.lingering)}" if self.lingering else ""
        verdict = f"{len(self.differences)} DIFFERENCES" if self.differences else "same"
        return (
            f"round {self.number}: {how}, {self.done} rows done; {went_on}resumed with exit {self.resumed} in "
            f"{self.seconds:.1f} s, {_again(self.again)}{lingering}: {verdict}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Soak:
    """What stays the same over all rounds."""

    folder: Path
    arguments: tuple[str, ...]  # of `batchgen run`, without the output
    rows: int
    layout: str
    draw: random.Random
    limit: float = 900.0  # seconds a run may take; a run that hangs is a difference

    @property
    def reference(self) -> Path:
        return self.folder / "reference"

    def command(self, output: Path) -> list[str]:
        return batchgen("run", *self.arguments, "--output", str(output))

    def run_reference(self) -> float:
        """Make the reference; returns the seconds it took.

        Raises:
            SystemExit: it fails, or does not hold every row once: nothing could be compared with it.
        """
        started = time.monotonic()
        code, _ = self._run_to_end(self.reference)
        seconds = time.monotonic() - started
        ids = [made.cells["id"] for made in read(self.reference)]
        if code or len(ids) != self.rows or len(set(ids)) != self.rows:
            raise SystemExit(f"the reference ended with exit {code} and {len(ids)} rows; see {self.folder}")
        if wrong := [*compare(self.reference, self.reference), *_verify(self.reference)]:
            raise SystemExit(f"the reference is not whole: {wrong[0]}")
        return seconds

    def run_round(self, number: int, victim: Victim, moment: float) -> Round:
        """Start, kill at the moment, resume, compare.

        Args:
            number: names the output.
            victim: what to kill.
            moment: seconds after the start.
        """
        output = self.folder / f"round-{number}"
        run = start(self.command(output), output.with_suffix(".killed.log"))
        began = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            run.wait(moment)
        members = family(run)
        after = time.monotonic() - began
        killed = self._kill(run, victim) if members else "nothing"
        committed = attempts(output)
        went_on = self._end_of(run) if killed.startswith(Victim.WORKER) or not members else None
        resumed, seconds = self._run_to_end(output)
        differences = [*self._differences(output, committed), *([f"resumed with exit {resumed}"] if resumed else [])]
        if went_on:
            differences.append(f"the run that lost a worker ended with exit {went_on}")
        return Round(
            number=number,
            victim=killed,
            killed=bool(members),
            after=after,
            done=sum(rows for _, rows in committed.values()),
            again=count_images(output) - self.rows if self.layout == "files" else None,
            went_on=went_on,
            resumed=resumed,
            seconds=seconds,
            lingering=_bury(members),
            differences=tuple(differences),
        )

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

    def _run_to_end(self, output: Path) -> tuple[int, float]:
        """Exit code and seconds of the command on an output."""
        began = time.monotonic()
        code = self._end_of(start(self.command(output), output.with_suffix(".log")))
        return code, time.monotonic() - began

    def _end_of(self, run: subprocess.Popen[bytes]) -> int:
        """The run's exit code; one that hangs is killed, and its code is that of the kill."""
        try:
            return run.wait(self.limit)
        except subprocess.TimeoutExpired:
            kill_all(run)
            return run.wait()

    def _differences(self, output: Path, committed: dict[str, tuple[str, int]]) -> Iterator[str]:
        now = attempts(output)
        for shard, (attempt, _) in committed.items():
            if shard not in now or now[shard][0] != attempt:
                yield f"shard {shard} was committed at the kill and is made again, or lost"
        yield from compare(self.reference, output)
        yield from _verify(output)


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
    given = [part for name, value in flags.items() if value for part in (f"--{name.replace('_', '-')}", str(value))]
    soaking = Soak(
        folder=folder, arguments=(str(manifest), *given), rows=arguments.rows, layout=arguments.layout, draw=draw
    )
    print(describe_line(describe()), flush=True)
    seconds = soaking.run_reference()
    print(f"reference: {arguments.rows} rows in {seconds:.1f} s; seed {arguments.seed}", flush=True)
    rounds: list[Round] = []
    for number, victim in enumerate(itertools.islice(_victims(draw), arguments.kills * TOO_LATE), start=1):
        rounds.append(soaking.run_round(number, victim, draw.uniform(0, seconds)))
        print(rounds[-1].line(), *(f"  {line}" for line in rounds[-1].differences[:20]), sep="\n", flush=True)
        if sum(one.killed for one in rounds) == arguments.kills:
            break
    kills = sum(one.killed for one in rounds)
    bad = sum(bool(one.differences) for one in rounds)
    enough = kills == arguments.kills
    again = sum(one.again or 0 for one in rounds) if arguments.layout == "files" else None
    print(
        f"{'OK' if enough and not bad else 'FAILED'}: {kills} of {arguments.kills} kills, "
        f"{bad} rounds with differences, {_again(again)}"
    )
    return 0 if enough and not bad else 1


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
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
