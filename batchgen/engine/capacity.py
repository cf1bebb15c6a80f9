"""What there is for workers to use, in numbers and for people."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from batchgen.errors import ClusterError
from batchgen.machine import cores, gpus
from batchgen.options import Device

__all__ = ["Capacity", "described"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What there is for workers now: nodes, and cores and GPUs over all of them."""

    place: str  # where it is, for people
    nodes: int
    cpus: int
    gpus: int

    @classmethod
    def of_this_machine(cls) -> "Capacity":
        """That of the machine that this process runs on, without asking CUDA or Ray."""
        return cls(place="this machine", nodes=1, cpus=cores(), gpus=gpus())

    def __str__(self) -> str:
        plural = "" if self.nodes == 1 else "s"
        return f"{self.place}: {self.nodes} node{plural}, {described({'CPU': self.cpus, 'GPU': self.gpus})}"

    def device(self, wanted: Device, *, waits: bool) -> Literal["cpu", "cuda"]:
        """Where workers will compute.

        Args:
            wanted: what was asked for.
            waits: whether a GPU that is not there yet is waited for.

        Raises:
            ClusterError: CUDA is asked for, and there is no GPU and will be none.
        """
        if wanted is Device.CUDA and not (self.gpus or waits):
            raise ClusterError(
                f"device 'cuda' was asked for, but {self.place} has no GPU; use --device cpu, or check the driver"
            )
        return "cuda" if wanted is Device.CUDA or (self.gpus and wanted is Device.AUTO) else "cpu"

    def workers(self, device: str, wanted: int | None) -> int:
        """As many workers as are wanted; one a GPU, or one a core, where that is open."""
        if wanted is None:
            wanted = self.gpus if device == "cuda" else self.cpus
        return max(1, wanted)


def described(resources: Mapping[str, float]) -> str:
    """Amounts by Ray's names, as people say them: 4 cores, 1 GPU."""
    names = {"CPU": ("core", "cores"), "GPU": ("GPU", "GPUs")}
    said = []
    for name, amount in resources.items():
        if name == "memory":
            said += [f"{amount / 2**30:.3g} GiB"]
        else:
            one, many = names.get(name, (name, name))
            said += [f"{amount:g} {one if amount == 1 else many}" if amount else f"no {one}"]
    return ", ".join(said)
