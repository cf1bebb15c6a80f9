"""Phases in processes of their own, each in a time box, and the JSON lines that they leave.

A phase cannot take another one with it: one that hangs is killed, one that loses the GPU's context ends alone, and
what was measured before is on disk already. The processes are forked from one that has imported the libraries and
never touched the GPU, so that a phase begins within a second; where the GPU does not work after a fork, they are
started afresh.
"""

import faulthandler
import gc
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

__all__ = ["Box", "Journal", "run_boxes"]

LEAST_SECONDS = 4.0  # what a phase needs to begin at all; with less left it is not started
LONGEST_TRACEBACK = 4000  # characters
LAST_WORDS = 1.0  # seconds for a process that ran over to write where it was


@dataclass(frozen=True, kw_only=True, slots=True)
class Journal:
    """The file of JSON lines. Every record is written and flushed at once, by whichever process has it."""

    file: Path

    def write(self, phase: str, **record: Any) -> None:
        """Append one record of a phase."""
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"phase": phase, **record}, default=str) + "\n")

    def read(self, phase: str | None = None) -> list[dict[str, Any]]:
        """All records so far, or those of a phase."""
        if not self.file.exists():
            return []
        records = [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]
        return [record for record in records if phase in (None, record["phase"])]


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A phase: what it calls, and the most seconds that it may take.

    `run` is a function at the top of a module, so that a fresh process finds it; it is called with `arguments`.
    """

    name: str
    run: Callable[..., None]
    arguments: Mapping[str, Any]
    seconds: float
    fresh: bool = False  # in a process that inherits nothing


def run_boxes(boxes: Sequence[Box], journal: Journal, budget: float, *, say: Callable[[str], None]) -> None:
    """Run the boxes in their order, as long as the budget of seconds lasts."""
    end = time.monotonic() + budget
    context: BaseContext = multiprocessing.get_context("fork")
    for box in boxes:
        limit = min(box.seconds, end - time.monotonic())
        if limit < LEAST_SECONDS:
            journal.write(box.name, status="no time left")
            say(f"{box.name}: no time left")
            continue
        chosen = multiprocessing.get_context("spawn") if box.fresh else context
        status, seconds = _run(box, journal, limit, chosen)
        if status == "failed" and context.get_start_method() == "fork" and _fork_is_at_fault(journal, box.name):
            context = multiprocessing.get_context("spawn")
            status, seconds = _run(box, journal, min(box.seconds, end - time.monotonic()), context)
        say(f"{box.name}: {status}, {seconds:.1f} s of {limit:.0f}")


def _run(box: Box, journal: Journal, limit: float, context: BaseContext) -> tuple[str, float]:
    where = journal.file.with_name(f".{box.name.replace(':', '-')}.stack")
    started = time.monotonic()
    process = context.Process(target=_child, args=(box, journal, where))  # type: ignore[attr-defined]
    process.start()
    process.join(limit)
    seconds = time.monotonic() - started
    if process.is_alive():
        status, found = "ran over", _stop(process, where)[:LONGEST_TRACEBACK]  # the innermost call comes first
    elif process.exitcode:
        written = where.read_text(encoding="utf-8") if where.exists() else ""
        status, found = "failed", written[-LONGEST_TRACEBACK:]  # the error comes last
    else:
        status, found = "done", ""
    failure = {} if status == "done" else {"exit_code": process.exitcode, "traceback": found}
    journal.write(box.name, status=status, seconds=round(seconds, 2), limit=round(limit, 1), **failure)
    where.unlink(missing_ok=True)
    return status, seconds


def _child(box: Box, journal: Journal, where: Path) -> None:
    """What the process does: a session of its own, so that all it starts can be ended with it."""
    os.setsid()
    gc.freeze()  # what was imported stays: a compiler that makes and drops objects need not have it looked at each time
    with where.open("w", encoding="utf-8") as stack:
        faulthandler.enable(stack)
        faulthandler.register(signal.SIGUSR1, stack, all_threads=True)
        try:
            box.run(journal=journal, phase=box.name, **box.arguments)
        except BaseException:
            stack.write(traceback.format_exc())
            stack.flush()
            os._exit(1)  # without waiting for threads, or for a GPU that does not answer any more
    if not box.fresh:
        os._exit(0)  # nor for the end of a GPU's context, which a phase may have broken on purpose


def _stop(process: BaseProcess, where: Path) -> str:
    """End a process and all that it started; returns where it was."""
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGUSR1)
        process.join(LAST_WORDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return where.read_text(encoding="utf-8") if where.exists() else ""


def _fork_is_at_fault(journal: Journal, phase: str) -> bool:
    text = journal.read(phase)[-1].get("traceback", "")
    return "forked subprocess" in text or "initialization error" in text
