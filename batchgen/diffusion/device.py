"""The boundary between the device and the rest: what torch raises for it, in the package's own errors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from batchgen.errors import DeviceLost, OutOfDeviceMemory

__all__ = ["device_errors"]

# torch has no class of its own for main memory that does not suffice: its allocator says so, or oneDNN for its buffers
_NO_MAIN_MEMORY = re.compile(r"DefaultCPUAllocator|could not create a primitive\s*$", re.MULTILINE)


@contextmanager
def device_errors(images: int) -> Iterator[None]:
    """While it lasts, errors of the device become ours; all others pass.

    Args:
        images: of the call, for the remedy.

    Raises:
        OutOfDeviceMemory: what is computed does not fit; the device can be used on.
        DeviceLost: a kernel failed, and CUDA refuses every further call of this process.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfDeviceMemory(_remedy(images, error)) from error
    except RuntimeError as error:
        if _NO_MAIN_MEMORY.search(str(error)):
            raise OutOfDeviceMemory(_remedy(images, error)) from error
        if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
            raise DeviceLost(f"the GPU's context is lost: {_first_line(error)}") from error
        raise


def _remedy(images: int, error: Exception) -> str:
    return f"a call of {images} images does not fit on the device; try --batch-size ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
