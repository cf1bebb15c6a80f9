"""What a number depends on besides the code: the machine, its load, the versions; and how `batchgen` is called here.

Imports neither batchgen nor any large library, so that it can be asked by a process whose own memory must stay small.
"""

import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["QUIET", "batchgen", "describe", "describe_line"]

_PACKAGES = ("batchgen", "torch", "diffusers", "transformers", "ray", "pyarrow")

# Beside two busy processes on 2 cores the bare loop's 2 threads waited for each other at every operation: 0.28 images/s
# and, minutes later, 1.83, where one thread made 3.6; `run`, whose workers have one thread each, made 5.3.
QUIET = 0.5  # load over the last minute


def batchgen(*arguments: str) -> list[str]:
    """A command line of the product as a user types it: the console script of this interpreter's environment.

    Raises:
        SystemExit: batchgen is not installed in the environment.
    """
    script = shutil.which("batchgen", path=str(Path(sys.executable).parent)) or shutil.which("batchgen")
    if script is None:
        raise SystemExit("there is no batchgen command beside this Python; install the package first")
    return [script, *arguments]


def describe() -> dict[str, Any]:
    """Hardware, load over the last minute, versions, commit and time, as JSON values."""
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines(),
        "load_before": round(
            os.getloadavg()[0], 2
        ),  # processes that wanted a core; above 0.2 the numbers are not clean
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "commit": _output_of("git", "describe", "--always", "--dirty", cwd=Path(__file__).parent),
    }


def describe_line(about: dict[str, Any]) -> str:
    """The same in one line."""
    gpus = f", {len(about['gpus'])}x {about['gpus'][0]}" if about["gpus"] else ""
    versions = ", ".join(f"{package} {about[package]}" for package in ("python", *_PACKAGES))
    disturbed = " (NOT IDLE: these are no measurements)" if about["load_before"] > QUIET else ""
    return (
        f"{about['when']}: {about['cores']} cores of {about['cpu']}, {about['memory_gib']} GiB{gpus}, "
        f"load before {about['load_before']}{disturbed}; {versions}; commit {about['commit'] or 'unknown'}"
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _output_of(*command: str, cwd: Path | None = None) -> str:
    """What a command prints, empty where it is missing or fails."""
    try:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
