"""Everything that is claimed of CUDA, run and written down, in one call.

`python jobs/bench/gpu/measure.py --out FOLDER [--budget 420] [--weights FOLDER] [--only NAMES] [--pytest]
 [--tiny] [--device cuda|cpu]`

Phases run in order of worth, each in its own process and time box, and write JSON lines to FOLDER/results.jsonl at
once. At the end FOLDER/DATE-GPU.json holds all of them, and a table is printed. `--tiny --device cpu` runs every phase
on a CPU with small nets, which measures nothing and shows that the script is sound. How to call it on a bare machine:
README.md.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boxes import Box
    from setting import Setting

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # the modules beside this one, and those of the other benchmarks
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking whether there is a GPU must not touch it
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "pyarrow", "PIL", "cv2", "scipy",
            "torchsde", "fsspec", "rich", "click")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 where all phases ended, 1 where some failed or ran over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results; made if missing")
    parser.add_argument("--budget", type=float, default=420, help="seconds for all phases together")
    parser.add_argument("--weights", type=Path, help="a model whose pictures are compared as well (the built-in one)")
    parser.add_argument("--only", default="", help="phases whose names begin with one of these, separated by commas")
    parser.add_argument("--pytest", action="store_true", help="run the tests marked gpu as well")
    parser.add_argument("--tiny", action="store_true", help="small nets and few steps")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--list", action="store_true", help="name the phases and stop")
    given = parser.parse_args(arguments)
    if missing := _missing():
        print(f"missing packages: {', '.join(missing)}; wheels.py gathers them, README.md says how", file=sys.stderr)
        return 2
    if given.device == "cuda" and (trouble := _no_gpu()):
        print(f"{trouble}; --tiny --device cpu runs the same phases on a CPU", file=sys.stderr)
        return 2
    if given.weights is not None and not (given.weights / "model_index.json").is_file():
        print(f"--weights {given.weights} is no model's folder; going on without", file=sys.stderr)
        given.weights = None
    from boxes import Journal, run_boxes  # these need the packages
    from setting import Setting
    from summary import results_file, table

    given.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(file=given.out / "results.jsonl")
    journal.file.unlink(missing_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="batchgen-gpu-"))
    setting = Setting(
        device=given.device, tiny=given.tiny, scratch=scratch, out=given.out.resolve(), weights=given.weights
    )
    wanted = tuple(filter(None, given.only.split(",")))
    boxes = [box for box in _boxes(setting, given.pytest) if not wanted or box.name.startswith(wanted)]
    if given.list:
        print("\n".join(box.name for box in boxes))
        return 0
    started = time.monotonic()
    try:
        run_boxes(boxes, journal, given.budget, say=lambda line: print(line, file=sys.stderr, flush=True))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    records = journal.read()
    file = given.out / results_file(records)
    file.write_text(json.dumps({"command": sys.argv[1:], "records": records}, indent=1) + "\n", encoding="utf-8")
    print(table(records))
    print(f"{time.monotonic() - started:.0f} s; all of it is in {file}")
    done = {record["phase"] for record in records if record.get("status") == "done" and "limit" in record}
    return 0 if done >= {box.name for box in boxes} else 1


def _boxes(setting: "Setting", with_pytest: bool) -> Iterator["Box"]:
    """The phases, in order of worth."""
    import gains
    import phases
    import workers
    from boxes import Box

    def box(name: str, run: Callable[..., None], seconds: float, *, fresh: bool = False, **arguments: object) -> Box:
        return Box(name=name, run=run, arguments={"setting": setting, **arguments}, seconds=seconds, fresh=fresh)

    plain = ("text-to-image", "image-to-image", "inpainting", "controlnet")
    yield box("facts", phases.facts, 30)
    yield box("sameness:sd15:float16", phases.sameness, 45, net="sd15", dtype="float16", tasks=plain)
    yield box("sameness:sdxl:float16", phases.sameness, 45, net="sdxl", dtype="float16", tasks=plain[:1])
    yield box("rates:sd15", phases.rates, 60, net="sd15", dtype="float16", steps=(20, 50))
    yield box("rates:sdxl", phases.rates, 90, net="sdxl", dtype="float16", steps=(20, 30), largest=16)
    yield box("sameness:sd15:bfloat16", phases.sameness, 45, net="sd15", dtype="bfloat16", tasks=plain)
    yield box("sameness:sdxl:bfloat16", phases.sameness, 45, net="sdxl", dtype="bfloat16", tasks=plain[:1])
    yield box("fresh:first", phases.fresh_process, 20, net="sd15", dtype="float16")
    yield box("fresh:second", phases.fresh_process, 40, fresh=True, net="sd15", dtype="float16")
    yield box("precision:sd15", phases.precision, 40, net="sd15")
    yield box("out-of-memory", phases.out_of_memory, 20, net="sd15")
    yield box("lost-device", phases.lost_device, 10)
    yield box("worker:sd15", workers.worker, 60, net="sd15", batch=16)
    yield box("broken-worker", workers.broken_worker, 60)
    yield box("run:sd15", workers.run_end_to_end, 150, net="sd15")
    if with_pytest:
        yield box("pytest", workers.gpu_tests, 90)
    yield box("precision:sdxl", phases.precision, 60, net="sdxl")
    yield box("determinism:sd15", phases.determinism, 40, net="sd15", batch=16)
    yield box("rates:sd21", phases.rates, 60, net="sd21", dtype="float16", steps=(20,), largest=32)
    for net in ("sd15", "sdxl", "refiner"):
        yield box(f"memory:{net}", phases.memory, 30, net=net)
    for net, batch in (("sd15", 16), ("sdxl", 4)):
        batch = 2 if setting.tiny else batch
        yield box(f"gain:{net}:text", gains.text_batches, 15, net=net)
        yield box(f"gain:{net}:vae", gains.vae_batches, 15, net=net)
        for variant in list(gains.VARIANTS)[: 1 if setting.tiny and net != "sd15" else None]:
            seconds = 300 if "UNet" in variant else 90 if "compiled" in variant else 30
            yield box(f"gain:{net}:{variant}", gains.gain, seconds, net=net, batch=batch, variant=variant)
    yield box("determinism:sdxl", phases.determinism, 60, net="sdxl", batch=4)


def _missing() -> list[str]:
    from importlib.util import find_spec

    return [name for name in PACKAGES if find_spec(name) is None]


def _no_gpu() -> str:
    """Why there is no GPU to measure on; empty where there is one."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return "" if torch.cuda.is_available() else "torch sees no GPU (is the driver loaded? nvidia-smi tells)"


if __name__ == "__main__":
    sys.exit(main())
