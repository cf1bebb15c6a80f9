"""Start a run, find its processes, kill some of them. Only descendants of what `start` started are ever touched."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil  # comes with accelerate

__all__ = ["family", "is_rays_own", "kill", "kill_all", "start", "survivors", "title", "workers"]

# Ray's own, not workers of the run; without a driver they take 60 s to end, workers 3 s (measured, Ray 2.60).
_SYSTEM_ACTORS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, stdout and stderr into `log`."""
    with log.open("wb") as stream:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )


def family(run: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The run's process and all its descendants; empty once it has ended, when the rest has other parents."""
    if run.poll() is not None:
        return []
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(run.pid)
        return [root, *root.children(recursive=True)]
    return []


def workers(members: list[psutil.Process]) -> list[psutil.Process]:
    """Ray's worker processes among them: the actors of the run, and idle ones."""
    return [member for member in members if title(member).startswith("ray::") and not is_rays_own(member)]


def is_rays_own(member: psutil.Process) -> bool:
    """Whether it is one of the agents that Ray itself keeps beside its workers."""
    return title(member).startswith(_SYSTEM_ACTORS)


def title(member: psutil.Process) -> str:
    """A process by the name that says most: a Ray worker's title, a Python script's or a program's file name."""
    with suppress(psutil.Error):
        words = [word for word in member.cmdline() if word]
        if words and words[0].startswith("ray::"):
            return words[0]
        scripts = [Path(word).name for word in words[:4] if word.endswith(".py")]
        return scripts[0] if scripts else str(member.name())
    return "gone"


def kill(victim: psutil.Process) -> None:
    """SIGKILL, unless it is gone; psutil makes sure that the number has not been given to another process."""
    with suppress(psutil.NoSuchProcess):
        victim.kill()


def kill_all(run: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """SIGKILL a run with all its descendants, as a machine that loses power would.

    They are stopped first, until no unstopped one is found: none can react to the death of another, or start a new one
    behind the listing's back.
    """
    stopped: list[psutil.Process] = []
    while fresh := [member for member in family(run) if member not in stopped]:
        for member in fresh:
            with suppress(psutil.NoSuchProcess):
                member.suspend()
        stopped += fresh
    for member in reversed(stopped):
        kill(member)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(run.pid, signal.SIGKILL)  # the session that `start` opened
    run.wait()
    return stopped


def survivors(members: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a dead one that nobody has waited for does not count."""
    left = []
    for member in members:
        with suppress(psutil.NoSuchProcess):
            if member.is_running() and member.status() != psutil.STATUS_ZOMBIE:
                left.append(member)
    return left
