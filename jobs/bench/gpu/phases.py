"""The phases: what is claimed of CUDA, each as a function that writes its findings into the journal.

Every one of them runs on a CPU too, with tiny nets: it measures nothing there, and shows that its code is sound.
"""

import hashlib
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from boxes import Journal
from checksums import Trace, first_difference
from nets import write_controlnet
from samples import Sample, reordered, sample
from setting import Setting, decibels, generate, spread
from stopwatch import Spans, peak_bytes, reset_peak

from batchgen.diffusion.device import device_errors
from batchgen.errors import DeviceLost
from batchgen.work import failure_of

Dtype = Literal["float16", "bfloat16", "float32"]

HALF: tuple[Dtype, ...] = ("float16", "bfloat16")
KNEE = 1.03  # a doubled batch that gains less than this is past the knee
LARGEST = 64  # rows of one call


def matmul_ceiling(journal: Journal) -> float | None:
    """TFLOP/s of the matrix product that the phase `facts` measured; None where it did not come so far."""
    found = [record["matmul_tflops"] for record in journal.read("facts") if "matmul_tflops" in record]
    return found[-1] if found else None


# --- sameness


def sameness(journal: Journal, phase: str, setting: Setting, net: str, dtype: Dtype, tasks: Sequence[str]) -> None:
    """Each row in a full batch, in another order, padded alone, and after another key's batch: bit for bit."""
    host, load = setting.host(net, dtype)
    other_key = setting.sample(net, f"{phase}-other", count=2, num_inference_steps=2, side=setting.net(net).side // 2)
    for task in tasks:
        cells = _cells(setting, net, task)
        size = setting.default_batch(net)
        whole = setting.sample(
            net, f"{phase}-{task}", count=size, batch_size=size, num_inference_steps=setting.steps(4), **cells
        )
        rows = list(range(len(whole.shard.rows)))
        first = host.generate(whole.model, whole.batch, whole.inputs)
        broken = []
        trials: dict[str, list[int]] = {"again": rows, "in another order": rows[::-1], "padded, alone": rows[1:2]}
        for name, places in {**trials, "after another key": rows}.items():
            if name == "after another key":
                generate(host, other_key)
            made = host.generate(whole.model, *reordered(whole, places))
            same = [np.array_equal(made.pixels[n], first.pixels[place]) for n, place in enumerate(places)]
            if not all(same):
                n = same.index(False)
                by = _differs_in(host, load.parts, whole, places, n)
                broken.append({"trial": name, "rows": same.count(False), "first_difference": by})
        journal.write(
            phase,
            net=net,
            dtype=dtype,
            task=task,
            batch=size,
            same=not broken,
            broken=broken,
            finite=all(first.finite),
            pixels=spread(first.pixels),
        )


def _cells(setting: Setting, net: str, task: str) -> dict[str, Any]:
    """The columns that make rows of a task."""
    match task:
        case "image-to-image":
            return {"image": True, "strength": 0.6}
        case "inpainting":
            return {"image": True, "mask_image": True, "strength": 0.8}
        case "controlnet":
            folder = setting.scratch / f"controlnet-{net}"
            if not (folder / "config.json").exists():
                write_controlnet(setting.net(net), folder, setting.torch_device)
            return {"control_image": True, "controlnet": str(folder), "controlnet_conditioning_scale": 0.8}
        case _:
            return {}


def _differs_in(host: Any, parts: Mapping[str, Any], whole: Sample, places: Sequence[int], number: int) -> str:
    """The module that first gives the row at `places[number]` other numbers than it has in the whole batch."""
    traces = Trace(), Trace()
    with traces[0].watching(parts):
        host.generate(whole.model, whole.batch, whole.inputs)
    with traces[1].watching(parts):
        host.generate(whole.model, *reordered(whole, places))
    return first_difference(traces[0], places[number], traces[1], number, whole.batch.size)


def fresh_process(journal: Journal, phase: str, setting: Setting, net: str, dtype: Dtype) -> None:
    """Checksums of a batch's images, compared with those that earlier processes wrote for the same batch."""
    host, load = setting.host(net, dtype)
    size = setting.default_batch(net)
    whole = setting.sample(net, f"fresh-{net}", count=size, batch_size=size, num_inference_steps=setting.steps(4))
    made, _ = generate(host, whole)
    sums = [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in made.pixels]
    weights = [hashlib.sha256(next(load.parts["unet"].parameters()).float().cpu().numpy().tobytes()).hexdigest()[:16]]
    earlier = [record for name in ("fresh:first", "fresh:second") for record in journal.read(name) if "sums" in record]
    same = [record["sums"] == sums and record["weights"] == weights for record in earlier]
    verdict: dict[str, Any] = {"same": all(same)} if same else {}
    journal.write(phase, net=net, dtype=dtype, process=os.getpid(), sums=sums, weights=weights, **verdict)


# --- rates


def rates(
    journal: Journal, phase: str, setting: Setting, net: str, dtype: Dtype, steps: Sequence[int], largest: int = LARGEST
) -> None:
    """Images a second over batch sizes until the knee, split by events; longer schedules at the best size."""
    host, load = setting.host(net, dtype)
    best, best_rate, previous, batch = 1, 0.0, 0.0, 1
    while batch <= (4 if setting.tiny else largest):
        try:
            found = _rate(journal, setting, host, load, net, steps[0], batch)
        except torch.OutOfMemoryError as error:
            journal.write(phase, net=net, batch=batch, out_of_memory=str(error).splitlines()[0][:200])
            break
        journal.write(phase, dtype=dtype, **found)
        if found["images_per_s"] > best_rate:
            best, best_rate = batch, found["images_per_s"]
        if previous and found["images_per_s"] < previous * KNEE:
            break
        previous, batch = found["images_per_s"], 2 * batch
    for longer in steps[1:]:
        journal.write(phase, dtype=dtype, **_rate(journal, setting, host, load, net, longer, best))
    _profile(setting, host, net, best)
    journal.write(phase, net=net, dtype=dtype, best_batch=best, profile=f"profile-{net}.txt")


def _rate(journal: Journal, setting: Setting, host: Any, load: Any, net: str, steps: int, batch: int) -> dict[str, Any]:
    """One measured call after a warm-up of two steps."""
    device, name = setting.torch_device, f"rate-{net}"
    warm = setting.sample(net, name, count=batch, batch_size=batch, first=batch, num_inference_steps=2)
    generate(host, warm)
    whole = setting.sample(net, name, count=batch, batch_size=batch, num_inference_steps=setting.steps(steps))
    reset_peak(device)
    spans = Spans(device=device)
    with spans.watching(load.parts, type(load.parts["scheduler"])):
        made, seconds = generate(host, whole)
    parts = spans.seconds()
    tflop = setting.net(net).tflop_an_image(steps)
    ceiling = matmul_ceiling(journal)
    achieved = None if tflop is None else tflop * batch / seconds
    return {
        "net": net,
        "side": setting.net(net).side,
        "steps": setting.steps(steps),
        "batch": batch,
        "images_per_s": round(batch / seconds, 3),
        "seconds": round(seconds, 3),
        "tflops": None if achieved is None else round(achieved, 1),
        "of_ceiling": None if achieved is None or ceiling is None else round(achieved / ceiling, 3),
        "peak_gib": None if (peak := peak_bytes(device)) is None else round(peak / 2**30, 2),
        "split": {name: round(value, 4) for name, value in parts.items()}
        | {"rest": round(seconds - sum(parts.values()), 4)},
        "finite": all(made.finite),
        "pixels": spread(made.pixels),
    }


def _profile(setting: Setting, host: Any, net: str, batch: int) -> None:
    """The 25 kernels that take most time in two steps, written out as a table."""
    whole = setting.sample(net, f"rate-{net}", count=batch, batch_size=batch, num_inference_steps=2)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if setting.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        generate(host, whole)
    order = "self_cuda_time_total" if setting.device == "cuda" else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=100)
    (setting.out / f"profile-{net}.txt").write_text(table)


# --- precision


def precision(journal: Journal, phase: str, setting: Setting, net: str) -> None:
    """PSNR of half precisions against float32 with the same noise; of the real weights too, where they are given."""
    plain: list[tuple[Dtype, dict[str, str]]] = [("float32", {}), ("float16", {}), ("bfloat16", {})]
    variants = [*plain, ("float16", {"vae": "bfloat16"})]
    references: dict[str, Any] = {}
    for dtype, dtypes in variants:
        name = dtype + "".join(f", {part} {own}" for part, own in dtypes.items())
        sources: dict[str, Callable[[], tuple[Any, Sample]]] = {
            "random": lambda d=dtype, o=dtypes: (  # type: ignore[misc]
                setting.host(net, d, **o)[0],
                setting.sample(net, phase, count=2, num_inference_steps=setting.steps(20)),
            )
        }
        if setting.weights is not None and net == "sd15":
            sources["given"] = lambda d=dtype, o=dtypes: (  # type: ignore[misc]
                setting.real_host(d, **o),
                sample(
                    setting.weights or Path(),
                    setting.scratch / f"{phase}-given",
                    count=setting.steps(8),
                    batch_size=setting.steps(8),
                    side=128,
                    num_inference_steps=setting.steps(25),
                    device=setting.device,
                ),
            )
        for weights, make in sources.items():
            host, whole = make()
            made, seconds = generate(host, whole)
            reference = references.setdefault(weights, made.pixels)
            journal.write(
                phase,
                net=net,
                weights=weights,
                dtype=name,
                psnr_db=decibels(made.pixels, reference),
                finite=all(made.finite),
                seconds_first_call=round(seconds, 2),
                pixels=spread(made.pixels),
            )


# --- determinism


def determinism(journal: Journal, phase: str, setting: Setting, net: str, batch: int) -> None:
    """The rate as it is, and with each of the four switches the other way, one at a time."""
    host, _ = setting.host(net, "float16")
    batch = min(batch, 2) if setting.tiny else batch
    whole = setting.sample(net, phase, count=batch, batch_size=batch, num_inference_steps=setting.steps(10))
    reference = None
    for name, switched in _SWITCHES.items():
        with switched():
            generate(host, whole)
            made, seconds = generate(host, whole)
            again, _ = generate(host, whole)
        reference = made.pixels if reference is None else reference
        journal.write(
            phase,
            net=net,
            batch=batch,
            variant=name,
            images_per_s=round(batch / seconds, 3),
            psnr_db=decibels(made.pixels, reference),
            repeats=bool(np.array_equal(made.pixels, again.pixels)),
        )


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _nondeterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _tf32() -> Iterator[None]:
    with _set(torch.backends.cudnn, "allow_tf32", True), _set(torch.backends.cuda.matmul, "allow_tf32", True):
        yield


_SWITCHES: Mapping[str, Callable[[], Any]] = {
    "as it is": nullcontext,
    "use_deterministic_algorithms off": _nondeterministic,
    "TF32 on": _tf32,
    "cudnn.benchmark on": lambda: _set(torch.backends.cudnn, "benchmark", True),
}


# --- memory


def memory(journal: Journal, phase: str, setting: Setting, net: str, most: int) -> None:
    """The largest batch, doubled up to `most` or until memory ends, one step each."""
    host, _ = setting.host(net, "float16")
    cells = {"image": True, "strength": 1.0} if setting.net(net).second_tower_only else {}
    batch, largest = 1, 0
    while batch <= (4 if setting.tiny else most):
        whole = setting.sample(net, phase, count=batch, batch_size=batch, num_inference_steps=1, **cells)
        reset_peak(setting.torch_device)
        try:
            generate(host, whole)
        except torch.OutOfMemoryError as error:
            journal.write(phase, net=net, batch=batch, out_of_memory=str(error).splitlines()[0][:200])
            break
        peak = peak_bytes(setting.torch_device)
        journal.write(phase, net=net, batch=batch, peak_gib=None if peak is None else round(peak / 2**30, 2))
        largest, batch = batch, 2 * batch
    journal.write(phase, net=net, side=setting.net(net).side, largest_batch=largest)


def out_of_memory(journal: Journal, phase: str, setting: Setting, net: str) -> None:
    """A batch that does not fit fails as one of memory, and the next one is made as if nothing had been."""
    host, _ = setting.host(net, "float16")
    small = setting.sample(net, phase, count=1, batch_size=1, num_inference_steps=2)
    before, _ = generate(host, small)
    side = setting.net(net).side * (4 if setting.tiny else 1)
    large = setting.sample(net, phase, count=64, batch_size=64, num_inference_steps=2, side=side)
    with _little_memory(setting):
        try:
            with device_errors(large.batch.size):
                generate(host, large)
        except Exception as error:
            failure = failure_of(error)
            found = {"failure": str(failure.error_class), "message": failure.message[:200]}
        else:
            found = {"failure": "none", "message": "the batch was made: the limit did not hold"}
    after, _ = generate(host, small)
    same = bool(np.array_equal(before.pixels, after.pixels))
    journal.write(phase, net=net, as_expected=found["failure"] == "out-of-memory" and same, next_is_same=same, **found)


@contextmanager
def _little_memory(setting: Setting) -> Iterator[None]:
    """While it lasts, the process can take hardly more memory than it has."""
    if setting.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    else:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + 2**21, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


def lost_device(journal: Journal, phase: str, setting: Setting) -> None:
    """A kernel that fails makes the context useless, and the error is one that must end the process."""
    table = torch.zeros(4, device=setting.device)
    found: dict[str, Any] = {"error": "none", "ends_the_process": False}
    try:
        with device_errors(1):
            table[torch.tensor([1_000_000], device=setting.device)].cpu()
    except Exception as error:
        cause = error.__cause__ or error
        found = {"error": type(cause).__name__, "ends_the_process": isinstance(error, DeviceLost)}
    try:
        torch.zeros(1, device=setting.device).add_(1).cpu()
    except Exception:
        usable = False
    else:
        usable = True
    journal.write(phase, device_usable_after=usable, as_expected=found["ends_the_process"] != usable, **found)
