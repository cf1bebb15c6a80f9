"""The loop that every training stage runs in: several processes, averaged weights, checkpoints; knows no stage.

Each process computes on one thread: on small CPUs that is far faster than one process of several threads, and it
survives other load. What step s does depends on the seed, s and the number of processes only, so a run that was
killed and resumed ends in the same weights as one that was not.
"""

import math
import os
import socket
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from batchgen.builtin.recipe import RecipeError, Training

PROGRESS_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The randomness and place of one step of one process; `progress` in [0, 1) is the share of steps done."""

    rng: np.random.Generator
    noise: torch.Generator
    batch: int
    progress: float
    device: torch.device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.noise).to(self.device)


class Task(Protocol):
    """A stage's model and loss. It is pickled into every process, so it holds paths and numbers, not tensors."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> str:
        """A digest of what earlier stages made; a checkpoint is not resumed on other inputs."""

    def build(self) -> nn.Module:
        """The model with its initial weights; torch is seeded before."""

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        """Open the data and return the loss of one batch; raises RecipeError when an earlier stage is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """Where to train. `bfloat16` None means: where matrix products are faster in it."""

    device: str = "cpu"
    processes: int = 2
    bfloat16: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A finished stage: `seconds` are those of training, over all of its runs."""

    steps: int
    seconds: float
    loss: float


def prefers_bfloat16() -> bool:
    """Whether this machine multiplies matrices clearly faster in bfloat16 than in float32 (measured, 0.1 s)."""
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(512, 512, dtype=dtype)
        matrix @ matrix
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < 0.05:
            matrix @ matrix
            count += 1
        rates.append(count)
    return rates[1] > 1.4 * rates[0]


def learning_rate(training: Training, step: int) -> float:
    """Linear warm-up, then half a cosine down to one percent of the peak."""
    warm = min(1.0, (step + 1) / max(1, training.warmup))
    wave = 0.5 * (1 + math.cos(math.pi * step / training.steps))
    return training.learning_rate * warm * max(0.01, wave)


def save_atomically(value: object, path: Path) -> None:
    """Write with torch.save beside `path` and move into place, so that `path` is always a whole checkpoint."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(value, partial)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


class Run:
    """One process's share of one stage: weights, optimiser, averaged weights and how far they are."""

    def __init__(self, task: Task, training: Training, folder: Path, seed: int, hardware: Hardware, rank: int) -> None:
        self.task, self.training, self.hardware, self.rank = task, training, hardware, rank
        self.seed, self.checkpoint = seed, folder / "checkpoint.pt"
        self.device = torch.device(hardware.device)
        torch.manual_seed(seed)
        self.model = task.build().to(self.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=training.learning_rate, betas=(0.9, 0.99), weight_decay=training.weight_decay
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.step, self.seconds, self.loss = 0, 0.0, float("nan")
        self._resume()

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state: dict[str, Any] = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["seed"] != self.seed:
            raise RecipeError(f"{self.checkpoint} belongs to seed {state['seed']}, not {self.seed}")
        if state["inputs"] != self.task.inputs:
            raise RecipeError(
                f"{self.checkpoint} was trained on what earlier stages made before: remove it to start over"
            )
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise RecipeError(f"{self.checkpoint} belongs to another architecture: remove it to start over") from error
        self.optimizer.load_state_dict(state["optimizer"])
        for mine, stored in zip(self.average, state["average"], strict=True):
            mine.copy_(stored)
        self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]

    def save(self) -> None:
        if self.rank == 0:
            state = {
                "seed": self.seed,
                "inputs": self.task.inputs,
                "step": self.step,
                "seconds": self.seconds,
                "loss": self.loss,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average,
            }
            save_atomically(state, self.checkpoint)

    def advance(self, loss_of: Callable[[nn.Module, Draw], Tensor], *, autocast: bool) -> None:
        """One optimiser step on this process's share of the batch."""
        rate = learning_rate(self.training, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        stream = (self.seed, zlib.crc32(self.task.name.encode()), self.step, self.rank)
        rng = np.random.default_rng(stream)
        draw = Draw(
            rng=rng,
            noise=torch.Generator().manual_seed(int(rng.integers(1 << 62))),
            batch=max(1, self.training.batch // self.hardware.processes),
            progress=self.step / self.training.steps,
            device=self.device,
        )
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast):
            loss = loss_of(self.model, draw)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        if self.hardware.processes > 1:
            flat = torch.cat([gradient.ravel() for gradient in gradients])
            distributed.all_reduce(flat)
            flat /= self.hardware.processes
            pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.training.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        value = loss.item()
        self.loss = value if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * value


def _report(run: Run, *, since: float, steps: int, log: Callable[[str], None]) -> None:
    rate = steps / max(1e-9, time.monotonic() - since)
    left = (run.training.steps - run.step) / max(rate, 1e-9)
    log(
        f"{run.task.name}: step {run.step:,}/{run.training.steps:,}, {rate:.2f} steps/s, loss {run.loss:.4f}, "
        f"{left / 60:.0f} min left"
    )


def _work(
    rank: int, task: Task, training: Training, folder: Path, seed: int, hardware: Hardware, port: int,
    log: Callable[[str], None],
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    if hardware.processes > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        distributed.init_process_group("gloo", rank=rank, world_size=hardware.processes)
    run = Run(task, training, folder, seed, hardware, rank)
    loss_of = task.open(run.device)
    autocast = prefers_bfloat16() if hardware.bfloat16 is None else hardware.bfloat16
    mark, mark_step, reported = time.monotonic(), run.step, time.monotonic()
    while run.step < training.steps:
        start = time.monotonic()
        run.advance(loss_of, autocast=autocast)
        run.seconds += time.monotonic() - start
        if rank == 0 and time.monotonic() - reported > PROGRESS_SECONDS:
            _report(run, since=mark, steps=run.step - mark_step, log=log)
            mark, mark_step, reported = time.monotonic(), run.step, time.monotonic()
        if run.step % training.save_every == 0 or run.step == training.steps:
            run.save()
    if hardware.processes > 1:
        distributed.destroy_process_group()


def train(
    task: Task, training: Training, folder: Path, *, seed: int, hardware: Hardware, log: Callable[[str], None]
) -> Outcome:
    """Train until `training.steps`, from the checkpoint in `folder` if there is one.

    Raises RecipeError when the folder cannot be written, when an earlier stage is missing or when the checkpoint
    belongs to another seed or architecture.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise RecipeError(f"cannot write to {folder}: {error}") from error
    if hardware.device != "cpu":
        hardware = replace(hardware, processes=1, bfloat16=hardware.bfloat16 is not False)
    task.open(torch.device("cpu"))  # complain about missing stages here, not in another process
    if hardware.processes == 1:
        threads = torch.get_num_threads()
        _work(0, task, training, folder, seed, hardware, 0, log)
        torch.set_num_threads(threads)
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = (task, training, folder, seed, hardware, port, log)
        spawn(_work, args=arguments, nprocs=hardware.processes)  # type: ignore[no-untyped-call]
    state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    return Outcome(steps=state["step"], seconds=state["seconds"], loss=state["loss"])


def averaged(task: Task, folder: Path) -> nn.Module:
    """The model with the averaged weights of the checkpoint in `folder`, on the CPU, in evaluation mode.

    Raises RecipeError when there is no checkpoint.
    """
    checkpoint = folder / "checkpoint.pt"
    if not checkpoint.exists():
        raise RecipeError(f"no checkpoint in {folder}: run the {task.name} stage first")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = task.build()
    model.load_state_dict(state["model"])
    with torch.no_grad():
        for parameter, average in zip(
            (p for p in model.parameters() if p.requires_grad), state["average"], strict=True
        ):
            parameter.copy_(average)
    return model.eval()
