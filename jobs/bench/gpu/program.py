"""The phases in order of worth, with the most seconds that each may take and the memory that its nets need."""

from collections.abc import Callable, Iterator, Mapping

import gains
import phases
import workers
from boxes import Box
from facts import facts
from setting import Setting

__all__ = ["NEEDS_GIB", "program"]

NEEDS_GIB: Mapping[str, float] = {"sd15": 6, "sd21": 8, "sdxl": 20, "refiner": 18}
"""Of the GPU's memory: a net's weights in float32, in which they are drawn, and room to work."""


def program(setting: Setting, *, with_pytest: bool) -> Iterator[Box]:
    """All phases."""

    def box(name: str, run: Callable[..., None], seconds: float, *, fresh: bool = False, **arguments: object) -> Box:
        seconds = seconds * 2 if setting.tiny else seconds  # a CPU has other work too
        return Box(name=name, run=run, arguments={"setting": setting, **arguments}, seconds=seconds, fresh=fresh)

    plain = ("text-to-image", "image-to-image", "inpainting", "controlnet")
    few = plain[:1] if setting.tiny else plain  # a CPU is slow at convolutions in half precision
    yield Box(name="facts", run=facts, arguments={"device_name": setting.device, "small": setting.tiny}, seconds=30)
    yield box("sameness:sd15:float16", phases.sameness, 45, net="sd15", dtype="float16", tasks=plain)
    yield box("sameness:sdxl:float16", phases.sameness, 45, net="sdxl", dtype="float16", tasks=plain[:1])
    yield box("rates:sd15", phases.rates, 90, net="sd15", dtype="float16", steps=(20, 50))
    yield box("rates:sdxl", phases.rates, 120, net="sdxl", dtype="float16", steps=(20, 30), largest=16)
    yield box("sameness:sd15:bfloat16", phases.sameness, 45, net="sd15", dtype="bfloat16", tasks=few)
    yield box("sameness:sdxl:bfloat16", phases.sameness, 45, net="sdxl", dtype="bfloat16", tasks=plain[:1])
    yield box("fresh:first", phases.fresh_process, 20, net="sd15", dtype="float16")
    yield box("fresh:second", phases.fresh_process, 40, fresh=True, net="sd15", dtype="float16")
    yield box("precision:sd15", phases.precision, 40, net="sd15")
    yield box("out-of-memory", phases.out_of_memory, 20, net="sd15")
    yield box("lost-device", phases.lost_device, 10)
    yield box("worker:sd15", workers.worker, 90, net="sd15", batch=16)
    yield box("broken-worker", workers.broken_worker, 60)
    yield box("run:sd15", workers.run_end_to_end, 150, net="sd15")
    if with_pytest:
        yield box("pytest", workers.gpu_tests, 90)
    yield box("precision:sdxl", phases.precision, 60, net="sdxl")
    yield box("determinism:sd15", phases.determinism, 40, net="sd15", batch=16)
    yield box("rates:sd21", phases.rates, 60, net="sd21", dtype="float16", steps=(20,), largest=32)
    for net, most in (("sd15", 128), ("sdxl", 32), ("refiner", 32)):
        yield box(f"memory:{net}", phases.memory, 45, net=net, most=most)
    for net, batch in (("sd15", 16), ("sdxl", 4)):
        batch = 2 if setting.tiny else batch
        yield box(f"gain:{net}:text", gains.text_batches, 15, net=net)
        yield box(f"gain:{net}:vae", gains.vae_batches, 15, net=net)
        for variant, change in list(gains.VARIANTS.items())[: 1 if setting.tiny and net != "sd15" else None]:
            if setting.tiny and not change.rehearsed:
                continue
            seconds = 300 if "UNet" in variant else 90 if "compiled" in variant else 30
            yield box(f"gain:{net}:{variant}", gains.gain, seconds, net=net, batch=batch, variant=variant)
    yield box("determinism:sdxl", phases.determinism, 60, net="sdxl", batch=4)
