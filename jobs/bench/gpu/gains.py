"""What could be won: one change at a time against the plain path, with the error that it makes."""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from boxes import Journal
from samples import Sample, reordered
from setting import Setting, decibels, generate
from stopwatch import timed
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchgen.diffusion.host import PipelineHost

__all__ = ["VARIANTS", "gain", "text_batches", "vae_batches"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A change: what is done to the parts when they are loaded."""

    prepare: Callable[[Mapping[str, Any]], None] = lambda _parts: None
    cache: str = ""  # of compiled code: "save" it for other processes, or "load" what one saved
    needs: str = ""  # a module that may be missing
    rehearsed: bool = True  # with small nets on a CPU, where compiling takes half a minute


def _channels_last(parts: Mapping[str, Any]) -> None:
    for name in ("unet", "vae"):
        parts[name].to(memory_format=torch.channels_last)


def _compile_blocks(parts: Mapping[str, Any]) -> None:
    parts["unet"].compile_repeated_blocks(fullgraph=True, backend=_backend())


def _compile_blocks_for_cache(parts: Mapping[str, Any]) -> None:
    if _on_gpu():
        parts["unet"].compile_repeated_blocks(fullgraph=True)
    else:  # a kernel to keep and to load; those of all blocks take a CPU a minute, which measures nothing
        next(module for module in parts["unet"].modules() if isinstance(module, torch.nn.LayerNorm)).compile()


def _compile_blocks_deterministically(parts: Mapping[str, Any]) -> None:
    import torch._inductor.config as inductor

    inductor.deterministic = True  # TORCHINDUCTOR_DETERMINISTIC: no choice of a kernel by timing it on this device
    _compile_blocks(parts)


def _compile_whole(parts: Mapping[str, Any]) -> None:
    parts["unet"].compile(backend=_backend())


def _compile_autotuned(parts: Mapping[str, Any]) -> None:
    autotuned = {"mode": "max-autotune-no-cudagraphs"} if _on_gpu() else {"backend": _backend()}
    parts["unet"].compile(**autotuned)


def _on_gpu() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _backend() -> str:
    """Inductor; on a CPU, where it compiles even tiny nets for 10 to 45 s and nothing is measured, the traced graph."""
    return "inductor" if _on_gpu() else "eager"


def _quantize(parts: Mapping[str, Any]) -> None:
    from torchao.quantization import (  # type: ignore[import-not-found]
        Float8DynamicActivationFloat8WeightConfig,
        quantize_,
    )

    quantize_(parts["unet"], Float8DynamicActivationFloat8WeightConfig())
    _compile_blocks(parts)


def _together(parts: Mapping[str, Any]) -> None:
    _channels_last(parts)
    _compile_blocks(parts)


def _attention(name: str) -> Callable[[Mapping[str, Any]], None]:
    """Has the UNet use one of torch's fused attentions and no other; what it cannot do is an error.

    The autoencoder keeps its choice: it has one head of 512 numbers, which hardly any of them takes.
    """

    def prepare(parts: Mapping[str, Any]) -> None:
        forward = parts["unet"].forward

        def chosen(*args: Any, **kwargs: Any) -> Any:
            with sdpa_kernel(getattr(SDPBackend, name)):
                return forward(*args, **kwargs)

        parts["unet"].forward = chosen

    return prepare


VARIANTS: Mapping[str, Variant] = {
    "plain": Variant(),
    "channels_last": Variant(prepare=_channels_last),
    "attention cuDNN": Variant(prepare=_attention("CUDNN_ATTENTION")),
    "attention flash": Variant(prepare=_attention("FLASH_ATTENTION")),
    "attention efficient": Variant(prepare=_attention("EFFICIENT_ATTENTION")),
    "compiled blocks": Variant(prepare=_compile_blocks_for_cache, cache="save"),
    "compiled blocks, from another process's cache": Variant(prepare=_compile_blocks_for_cache, cache="load"),
    "compiled blocks, deterministic Inductor": Variant(prepare=_compile_blocks_deterministically),
    "channels_last and compiled blocks": Variant(prepare=_together, rehearsed=False),
    "fp8 linears, compiled blocks": Variant(prepare=_quantize, needs="torchao"),
    "compiled UNet": Variant(prepare=_compile_whole),
    "compiled UNet, autotuned": Variant(prepare=_compile_autotuned, rehearsed=False),
}
"""In the order of worth; attention by `sdpa_kernel`, since `set_attention_backend` does nothing for these UNets."""


def gain(journal: Journal, phase: str, setting: Setting, net: str, batch: int, variant: str) -> None:
    """The rate with one change, the seconds until it runs, and how far its images are from the plain path's."""
    change = VARIANTS[variant]
    found: dict[str, Any] = {"net": net, "batch": batch, "variant": variant}
    if change.needs:
        try:
            __import__(change.needs)
        except ImportError:
            journal.write(phase, **found, status=f"{change.needs} is not installed")
            return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(setting.scratch / f"inductor-{os.getpid()}")  # empty
    artifacts = setting.scratch / f"compiled-{net}"
    if change.cache == "load" and artifacts.exists():
        started = time.perf_counter()
        torch.compiler.load_cache_artifacts(artifacts.read_bytes())
        found["seconds_loading_cache"] = round(time.perf_counter() - started, 2)
    host, load = setting.host(net, "float16")
    warm = setting.sample(net, phase, count=batch, batch_size=batch, first=batch, num_inference_steps=2)
    whole = setting.sample(net, phase, count=batch, batch_size=batch, num_inference_steps=setting.steps(10))
    generate(host, warm)  # loads the model
    with torch.inference_mode():  # in which the weights were made
        change.prepare(load.parts)
    try:
        _, first = generate(host, warm)
        generate(host, whole)
        made, seconds = generate(host, whole)
        again, _ = generate(host, whole)
    except RuntimeError as error:  # an attention that cannot do the shapes or the precision
        journal.write(phase, **found, status=f"cannot: {str(error).splitlines()[0][:200]}")
        return
    reference = setting.scratch / f"plain-{net}.npy"
    if variant == "plain":
        np.save(reference, made.pixels)
    journal.write(
        phase,
        **found,
        images_per_s=round(batch / seconds, 3),
        seconds_first_call=round(first, 2),
        psnr_db=decibels(made.pixels, np.load(reference)) if reference.exists() else None,
        repeats=bool(np.array_equal(made.pixels, again.pixels)),
        rows_alone=_same_alone(host, whole, made.pixels),
        finite=all(made.finite),
        kernels=_attention_kernels(host, warm) if variant.startswith(("plain", "attention")) else None,
    )
    if change.cache == "save" and (saved := torch.compiler.save_cache_artifacts()) is not None:
        artifacts.write_bytes(saved[0])
        journal.write(phase, net=net, variant=variant, cache_bytes=len(saved[0]))
    shutil.rmtree(os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)


def _same_alone(host: PipelineHost, whole: Sample, pixels: npt.NDArray[np.uint8]) -> bool:
    """Whether the last row of the batch, padded and alone, is the same bit for bit."""
    last = len(whole.shard.rows) - 1
    alone = host.generate(whole.model, *reordered(whole, [last]))
    return bool(np.array_equal(alone.pixels[0], pixels[last]))


def _attention_kernels(host: PipelineHost, wanted: Sample) -> list[str]:
    """Names of the operators or kernels that attention ran: the proof that a choice took effect."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if _on_gpu():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        generate(host, wanted)
    names = {event.key for event in profiler.key_averages()}
    return sorted(name[:120] for name in names if any(word in name.lower() for word in ("attention", "fmha", "flash")))


def text_batches(journal: Journal, phase: str, setting: Setting, net: str) -> None:
    """Prompts encoded one at a time, as the engine does it, against all in one call."""
    device = setting.torch_device
    host, load = setting.host(net, "float16")
    generate(host, setting.sample(net, phase, count=1, num_inference_steps=1))  # loads the model
    ids = torch.randint(0, 500, (16, 77), device=device)
    for name in ("text_encoder", "text_encoder_2"):
        if (encoder := load.parts.get(name)) is None:
            continue
        with torch.inference_mode():
            single, one = _timed_states(device, encoder, ids, 1)
            batched, together = _timed_states(device, encoder, ids, len(ids))
        error = (single - batched).abs().max().item()
        journal.write(
            phase, net=net, encoder=name, prompts=len(ids), seconds_single=one, seconds_batch=together, error=error
        )


def _timed_states(device: torch.device, encoder: Any, ids: torch.Tensor, size: int) -> tuple[torch.Tensor, float]:
    """What an encoder makes of prompts, `size` a call, in float32, and the seconds for all."""
    seconds = timed(device, lambda: [encoder(part)[0] for part in ids.tensor_split(len(ids) // size)], repeats=3)
    return torch.cat([encoder(part)[0].float() for part in ids.tensor_split(len(ids) // size)]), seconds


def vae_batches(journal: Journal, phase: str, setting: Setting, net: str) -> None:
    """Latents decoded one at a time, as the engine does it, against four and eight a call."""
    device = setting.torch_device
    host, load = setting.host(net, "float16")
    generate(host, setting.sample(net, phase, count=1, num_inference_steps=1))  # loads the model
    vae, side = load.parts["vae"], setting.net(net).side // 8
    latents = torch.randn(8, 4, side, side, device=device, dtype=vae.dtype)
    reference = None
    for size in (1, 4, 8):
        with torch.inference_mode():
            decoded, seconds = _timed_decoding(device, vae, latents, size)
        reference = decoded if reference is None else reference
        error = (decoded - reference).abs().max().item()
        journal.write(phase, net=net, latents=8, a_call=size, images_per_s=round(8 / seconds, 2), error=error)


def _timed_decoding(device: torch.device, vae: Any, latents: torch.Tensor, size: int) -> tuple[torch.Tensor, float]:
    """Images of latents, `size` a call, in float32, and the seconds for all."""
    parts = latents.tensor_split(len(latents) // size)
    seconds = timed(device, lambda: [vae.decode(part)[0] for part in parts], repeats=3)
    return torch.cat([vae.decode(part)[0].float() for part in parts]), seconds
