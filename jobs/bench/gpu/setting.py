"""What every phase is told, and the hosts that they make."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from nets import NETS, TINY, Net, RandomModel, write_model
from samples import Sample, sample

from batchgen.diffusion.host import Images, PipelineHost
from batchgen.diffusion.loading import Loading

__all__ = ["Setting", "decibels", "generate", "spread"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Where and how large."""

    device: Literal["cpu", "cuda"]
    tiny: bool
    scratch: Path
    out: Path
    weights: Path | None = None  # a real model, whose images mean something

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    def net(self, name: str) -> Net:
        """An architecture, small where everything is."""
        return (TINY if self.tiny else NETS)[name]

    def model(self, name: str) -> Path:
        """The folder of a net of random weights."""
        return write_model(self.net(name), self.scratch / name)

    def steps(self, real: int) -> int:
        """How many steps to run where a real measurement takes `real`."""
        return min(real, 2) if self.tiny else real

    def default_batch(self, name: str) -> int:
        """Rows of one call, as the command takes them for the net's native size."""
        return 4 if self.tiny else self.sample(name, "default", count=1).batch.size

    def sample(self, name: str, scratch: str, *, count: int, **cells: Any) -> Sample:
        """Rows for a net of random weights, of its native size."""
        side = cells.pop("side", self.net(name).side)
        return sample(
            self.model(name),
            self.scratch / scratch.replace(":", "-"),
            count=count,
            side=side,
            device=self.device,
            **cells,
        )

    def host(
        self, name: str, dtype: Literal["float16", "bfloat16", "float32"], **dtypes: str
    ) -> tuple[PipelineHost, RandomModel]:
        """A host that makes its model's weights up, and what made them."""
        load = RandomModel(net=self.net(name), made={})
        loading = Loading(dtypes=dtypes)
        return PipelineHost(device=self.device, dtype=dtype, loading=loading, load=load), load

    def real_host(self, dtype: Literal["float16", "bfloat16", "float32"], **dtypes: str) -> PipelineHost:
        """A host that reads its model's weights."""
        return PipelineHost(device=self.device, dtype=dtype, loading=Loading(dtypes=dtypes))


def generate(host: PipelineHost, wanted: Sample) -> tuple[Images, float]:
    """All rows of a sample in one call, and the seconds that it took."""
    started = time.perf_counter()
    made = host.generate(wanted.model, wanted.batch, wanted.inputs)
    return made, time.perf_counter() - started


def decibels(pixels: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8]) -> float | None:
    """PSNR over all pixels and rows, 255 the peak; None where nothing differs."""
    error = np.mean((pixels.astype(np.float64) - reference.astype(np.float64)) ** 2)
    return None if error == 0 else round(float(10 * np.log10(255**2 / error)), 2)


def spread(pixels: npt.NDArray[np.uint8]) -> Mapping[str, float]:
    """Mean and deviation of the pixels' levels, 0 to 255."""
    return {"mean": round(float(pixels.mean()), 1), "deviation": round(float(pixels.std()), 1)}
