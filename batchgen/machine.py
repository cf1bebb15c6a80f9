"""What this machine offers to workers: cores that this process may use, and GPUs that the driver shows."""

import os
from itertools import takewhile
from pathlib import Path

__all__ = ["cores", "gpus"]


def cores() -> int:
    """CPU cores this process may use, by affinity and by the container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def gpus() -> int:
    """NVIDIA GPUs that this process sees, without asking CUDA, which would take seconds and memory."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if visible is None:
        return present
    named = takewhile(lambda gpu: gpu and not gpu.startswith("-"), map(str.strip, visible.split(",")))  # as CUDA does
    return min(present, sum(1 for _ in named))
