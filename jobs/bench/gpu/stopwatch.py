"""Where the time of a call goes, by events on the device: text, UNet, scheduler, decoding, and the rest."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Spans", "peak_bytes", "reset_peak", "synchronize", "timed"]


@dataclass(kw_only=True, slots=True)
class Spans:
    """Seconds by name, filled while `watching` a model's parts."""

    device: torch.device
    _pairs: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The callable, timed."""

        def timed_call(*args: Any, **kwargs: Any) -> Any:
            begin = self._mark()
            result = call(*args, **kwargs)
            self._pairs.setdefault(name, []).append((begin, self._mark()))
            return result

        return timed_call

    @contextmanager
    def watching(self, parts: Mapping[str, Any], scheduler: type) -> Iterator[None]:
        """While it lasts, forward passes of the parts and steps of the scheduler's class are timed."""
        watched: list[tuple[Any, str, str]] = [
            (part, "forward", "text") for name, part in parts.items() if name.startswith("text_encoder") and part
        ]
        watched += [(parts["unet"], "forward", "unet"), (parts["vae"], "decode", "decode")]
        watched += [(scheduler, "step", "scheduler")]
        with ExitStack() as stack:
            for owner, method, name in watched:
                own = method in vars(owner)
                original = getattr(owner, method)
                setattr(owner, method, self.around(name, original))
                stack.callback(setattr, owner, method, original) if own else stack.callback(delattr, owner, method)
            yield

    def seconds(self) -> dict[str, float]:
        """The sum of each name's spans; call it when the device has finished."""
        if self.device.type != "cuda":
            return {name: sum(end - begin for begin, end in pairs) for name, pairs in self._pairs.items()}
        return {
            name: sum(begin.elapsed_time(end) for begin, end in pairs) / 1000 for name, pairs in self._pairs.items()
        }


def synchronize(device: torch.device) -> None:
    """Wait until the device has nothing to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(device: torch.device, call: Callable[[], Any], *, repeats: int = 1) -> float:
    """Seconds of one call, the median of `repeats`; the device is idle before and after."""
    found = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        found.append(time.perf_counter() - started)
    return sorted(found)[len(found) // 2]


def reset_peak(device: torch.device) -> None:
    """Begin to watch the device's memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int | None:
    """The most that tensors took since `reset_peak`; None on a CPU, where nobody counts."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None
