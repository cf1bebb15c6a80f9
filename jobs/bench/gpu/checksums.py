"""Which module first gives a row other numbers: checksums of every module's output, a row each."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Trace", "first_difference"]

_WIDTH = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_PRIME = 1_000_003  # weights of neighbouring numbers differ, so that exchanged ones do not cancel


@dataclass(kw_only=True, slots=True)
class Trace:
    """Checksums in the order in which modules ran: module name and one number for each place of the batch."""

    calls: list[tuple[str, torch.Tensor]] = field(default_factory=list)

    @contextmanager
    def watching(self, parts: Mapping[str, Any]) -> Iterator[None]:
        """While it lasts, what each module inside the parts returns is summed up."""
        handles = []
        for part, module in sorted(parts.items()):
            if not isinstance(module, torch.nn.Module):
                continue
            if part == "unet":
                handles.append(module.register_forward_pre_hook(self._inputs(part), with_kwargs=True))
            for name, inner in module.named_modules():
                if not any(True for _ in inner.children()):
                    handles.append(inner.register_forward_hook(self._output(f"{part}.{name}")))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _inputs(self, part: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            tensors = [("sample", args[0] if args else kwargs.get("sample"))]
            tensors.append(("encoder_hidden_states", kwargs.get("encoder_hidden_states")))
            for name, tensor in tensors:
                if isinstance(tensor, torch.Tensor):
                    self.calls.append((f"{part} input {name}", checksum(tensor)))

        return hook

    def _output(self, name: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point() and output.ndim > 1:
                self.calls.append((name, checksum(output)))

        return hook

    def of_row(self, place: int, size: int) -> list[tuple[str, tuple[int, ...]]]:
        """The checksums of the row at `place` of a call of `size` rows: conditional and unconditional pass.

        The autoencoder decodes one row at a time, so its calls are told apart by their order; prompts are left out,
        since the cache of embeddings may hold them already (the UNet's input shows whether they differ).
        """
        found: list[tuple[str, tuple[int, ...]]] = []
        seen: dict[str, int] = {}
        for name, sums in self.calls:
            if name.startswith("text_encoder"):
                continue
            if len(sums) in (size, 2 * size):
                found.append((name, tuple(sums[place::size].tolist())))
            elif len(sums) == 1:
                turn = seen[name] = seen.get(name, -1) + 1
                if turn == place:
                    found.append((name, tuple(sums.tolist())))
        return found


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """One int64 for each entry of the first dimension, from the very bits: equal bits give equal numbers."""
    bits = tensor.detach().contiguous().view(_WIDTH[tensor.element_size()]).flatten(1).to(torch.int64)
    places = torch.arange(bits.shape[1], device=bits.device) % _PRIME + 1
    return (bits * places).sum(1)


def first_difference(one: Trace, place: int, other: Trace, other_place: int, size: int) -> str:
    """The first module whose output for a row differs between two calls, or that nothing does."""
    first, second = one.of_row(place, size), other.of_row(other_place, size)
    for number, ((name, sums), (other_name, other_sums)) in enumerate(zip(first, second, strict=False)):
        if name != other_name:
            return f"call {number} is of {name} here and of {other_name} there"
        if sums != other_sums:
            return f"{name} (call {number})"
    return "no module's output differs" if len(first) == len(second) else "one call ran more modules than the other"
