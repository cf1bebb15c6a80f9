"""What the numbers depend on, and the two ceilings that they are held against. Needs torch and nothing else."""

import platform
from typing import Any

import torch
from boxes import Journal
from machine import describe
from stopwatch import timed

__all__ = ["facts"]


def facts(journal: Journal, phase: str, device_name: str, small: bool) -> None:
    """GPU, driver, versions, and the two ceilings: a large bfloat16 matrix product and a copy on the device."""
    device = torch.device(device_name)
    about: dict[str, Any] = {**describe(), "torch_cuda": torch.version.cuda, "platform": platform.platform()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {
            "gpu": properties.name,
            "gpu_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    journal.write(phase, about=about)
    side = 256 if small else 8192
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    timed(device, lambda: left @ right, repeats=3)
    seconds = timed(device, lambda: [left @ right for _ in range(10)], repeats=3) / 10
    journal.write(phase, matmul_side=side, matmul_tflops=round(2 * side**3 / seconds / 1e12, 1))
    source = torch.randn((1 << 20) if small else (1 << 30), device=device)
    target = torch.empty_like(source)
    timed(device, lambda: target.copy_(source), repeats=2)
    seconds = timed(device, lambda: [target.copy_(source) for _ in range(10)], repeats=3) / 10
    moved = 2 * source.numel() * source.element_size()
    journal.write(phase, copy_bytes=moved, copy_tb_per_s=round(moved / seconds / 1e12, 2))
