"""A kernel that fails as the work of a Ray worker, which imports no more than that takes."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from batchgen.diffusion.device import device_errors

__all__ = ["Kernel", "KernelWorker"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """A unit of work: a kernel that fails the first time."""

    id: str = "kernel"

    @property
    def needs(self) -> str:
        return "a device"

    @property
    def key(self) -> str:
        return "kernels"

    def split(self) -> list["Kernel"]:
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelWorker:
    """Runs the kernel; its receipt is the number of the process."""

    device: str
    failed_once: Path

    def make(self) -> "KernelWorker":
        return self

    def ready(self, node: str, /) -> None:
        """A kernel needs nothing but its device."""

    def stop(self) -> None:
        """A kernel is over at once."""

    def stored(self) -> Collection[str]:
        """None: nothing is stored."""
        return ()

    def progress(self) -> dict[str, int]:
        """Nothing: a kernel is over at once."""
        return {}

    def run(self, unit: Kernel, /) -> int:
        """A look-up out of range, and afterwards one within it."""
        del unit
        first = not self.failed_once.exists()
        self.failed_once.write_text(str(os.getpid())) if first else None
        with device_errors(1):
            place = torch.tensor([1_000_000 if first else 1], device=self.device)
            torch.zeros(4, device=self.device)[place].cpu()
        return os.getpid()
