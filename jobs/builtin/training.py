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

from jobs.builtin.recipe import RecipeError, Training

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
    """Where to train. `bfloat16` None means: on a GPU, and on CPUs that are faster in it."""

    device: str = "cpu"
    processes: int = 2
    bfloat16: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A finished stage: `seconds` are those of training, over all of its runs."""

    steps: int
    seconds: float
    loss: float
    bfloat16: bool


def prefers_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively; without that it is a hundred times slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


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


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoint.pt"


def _choose_bfloat16(folder: Path, hardware: Hardware) -> bool:
    """What the checkpoint was made in, else what was asked for, else what is faster here."""
    if _checkpoint(folder).exists():
        return bool(torch.load(_checkpoint(folder), map_location="cpu", weights_only=True)["bfloat16"])
    if hardware.bfloat16 is not None:
        return hardware.bfloat16
    return hardware.device != "cpu" or prefers_bfloat16()


@dataclass(frozen=True, kw_only=True)
class Job:
    """A task with all that a process needs to work on it; `folder` takes the checkpoint, `log` progress lines."""

    task: Task
    training: Training
    folder: Path
    seed: int
    hardware: Hardware
    bfloat16: bool
    log: Callable[[str], None]

    @property
    def checkpoint(self) -> Path:
        return _checkpoint(self.folder)


class Run:
    """One process's share of a job: weights, optimiser, averaged weights and how far they are."""

    def __init__(self, job: Job, rank: int) -> None:
        self.job, self.rank, self.device = job, rank, torch.device(job.hardware.device)
        torch.manual_seed(job.seed)
        self.model = job.task.build().to(self.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        training = job.training
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=training.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.step, self.seconds, self.loss = 0, 0.0, float("nan")
        self._resume()

    def _resume(self) -> None:
        if not self.job.checkpoint.exists():
            return
        state: dict[str, Any] = torch.load(self.job.checkpoint, map_location=self.device, weights_only=True)
        if state["seed"] != self.job.seed:
            raise RecipeError(f"{self.job.checkpoint} belongs to seed {state['seed']}, not {self.job.seed}")
        if state["inputs"] != self.job.task.inputs:
            raise RecipeError(
                f"{self.job.checkpoint} was trained on what earlier stages made before: remove it to start over"
            )
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise RecipeError(
                f"{self.job.checkpoint} belongs to another architecture: remove it to start over"
            ) from error
        self.optimizer.load_state_dict(state["optimizer"])
        for mine, stored in zip(self.average, state["average"], strict=True):
            mine.copy_(stored)
        self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]

    def save(self) -> None:
        if self.rank == 0:
            state = {
                "seed": self.job.seed,
                "inputs": self.job.task.inputs,
                "bfloat16": self.job.bfloat16,
                "step": self.step,
                "seconds": self.seconds,
                "loss": self.loss,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average,
            }
            save_atomically(state, self.job.checkpoint)

    def advance(self, loss_of: Callable[[nn.Module, Draw], Tensor], *, autocast: bool) -> None:
        """One optimiser step on this process's share of the batch."""
        rate = learning_rate(self.job.training, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        stream = (self.job.seed, zlib.crc32(self.job.task.name.encode()), self.step, self.rank)
        rng = np.random.default_rng(stream)
        draw = Draw(
            rng=rng,
            noise=torch.Generator().manual_seed(int(rng.integers(1 << 62))),
            batch=max(1, self.job.training.batch // self.job.hardware.processes),
            progress=self.step / self.job.training.steps,
            device=self.device,
        )
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast):
            loss = loss_of(self.model, draw)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        if self.job.hardware.processes > 1:
            flat = torch.cat([gradient.ravel() for gradient in gradients])
            distributed.all_reduce(flat)
            flat /= self.job.hardware.processes
            pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.job.training.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        value = loss.item()
        self.loss = value if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * value


def _report(run: Run, *, since: float, steps: int) -> None:
    rate, total = steps / max(1e-9, time.monotonic() - since), run.job.training.steps
    left = (total - run.step) / max(rate, 1e-9)
    run.job.log(
        f"{run.job.task.name}: step {run.step:,}/{total:,}, {rate:.2f} steps/s, loss {run.loss:.4f}, "
        f"{left / 60:.0f} min left"
    )


def _work(rank: int, job: Job, port: int) -> None:
    """What each process does; module-level so that it can be spawned."""
    torch.set_num_threads(1)
    parallel = job.hardware.processes > 1
    if parallel:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        distributed.init_process_group("gloo", rank=rank, world_size=job.hardware.processes)
    run = Run(job, rank)
    loss_of = job.task.open(run.device)
    mark, mark_step, parent = time.monotonic(), run.step, os.getppid()
    while run.step < job.training.steps:
        if parallel and os.getppid() != parent:
            return  # the command was killed: an orphan must not write beside the run that resumes
        start = time.monotonic()
        run.advance(loss_of, autocast=job.bfloat16)
        run.seconds += time.monotonic() - start
        if rank == 0 and time.monotonic() - mark > PROGRESS_SECONDS:
            _report(run, since=mark, steps=run.step - mark_step)
            mark, mark_step = time.monotonic(), run.step
        if run.step % job.training.save_every == 0 or run.step == job.training.steps:
            run.save()
    if parallel:
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
        hardware = replace(hardware, processes=1)
    task.open(torch.device("cpu"))  # complain about missing stages here, not in another process
    job = Job(
        task=task,
        training=training,
        folder=folder,
        seed=seed,
        hardware=hardware,
        bfloat16=_choose_bfloat16(folder, hardware),
        log=log,
    )
    if hardware.processes == 1:
        threads = torch.get_num_threads()
        _work(0, job, 0)
        torch.set_num_threads(threads)
    else:
        if job.checkpoint.exists():
            Run(job, 0)  # complain about a checkpoint that does not fit here, not in another process
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        spawn(_work, args=(job, port), nprocs=hardware.processes)  # type: ignore[no-untyped-call]
    state = torch.load(job.checkpoint, map_location="cpu", weights_only=True)
    return Outcome(steps=state["step"], seconds=state["seconds"], loss=state["loss"], bfloat16=state["bfloat16"])


def averaged(task: Task, folder: Path) -> nn.Module:
    """The model with the averaged weights of the checkpoint in `folder`, on the CPU, in evaluation mode.

    Raises RecipeError when there is no checkpoint.
    """
    checkpoint = _checkpoint(folder)
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
