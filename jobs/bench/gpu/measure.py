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
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boxes import Box

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # the modules beside this one, and those of the other benchmarks
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking whether there is a GPU must not touch it
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

REQUIRED = (
    "PIL accelerate click cv2 diffusers fsspec numpy peft pyarrow rich safetensors scipy torchsde transformers".split()
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code.

    0: all phases ended. 1: some failed, ran over, or did not begin. 2: less was run than was asked for, and a line said
    why: packages or a GPU are missing, or the GPU is too small.
    """
    given = _parser().parse_args(arguments)
    if find_spec("torch") is None:
        print("torch is missing: nothing can be measured", file=sys.stderr)
        return 2
    limits = list(_limit(given))
    for line in limits:
        print(line, file=sys.stderr)
    given.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="batchgen-gpu-"))
    try:
        boxes = _boxes(given, scratch)
        if given.list:
            print("\n".join(box.name for box in boxes))
            return 0
        return max(_run(given, boxes), 2 if limits else 0)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results; made if missing")
    parser.add_argument("--budget", type=float, default=420, help="seconds for all phases together")
    parser.add_argument("--weights", type=Path, help="a model whose images are compared as well (the built-in one)")
    parser.add_argument("--only", default="", help="phases whose names begin with one of these, separated by commas")
    parser.add_argument("--pytest", action="store_true", help="run the tests marked gpu as well")
    parser.add_argument("--tiny", action="store_true", help="small nets and few steps")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--list", action="store_true", help="name the phases and stop")
    return parser


def _limit(given: argparse.Namespace) -> Iterator[str]:
    """Make what is asked for as small as what is there; a line for each thing that is missing."""
    if missing := [name for name in REQUIRED if find_spec(name) is None]:
        given.only = "facts"
        yield f"missing packages: {', '.join(missing)}; only the phase facts runs (README.md says where to get them)"
    if given.device == "cuda" and (why := _no_gpu()):
        given.device, given.tiny = "cpu", True
        yield f"{why}; small nets run on the CPU instead, which measures nothing"
    if given.weights is not None and not (given.weights / "model_index.json").is_file():
        yield f"--weights {given.weights} is no model's folder; its images are not compared"
        given.weights = None


def _no_gpu() -> str:
    """Why there is no GPU to measure on; empty where there is one."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return "" if torch.cuda.is_available() else "torch sees no GPU (is the driver loaded? nvidia-smi tells)"


def _boxes(given: argparse.Namespace, scratch: Path) -> list["Box"]:
    """The phases that were asked for and that the GPU has memory for."""
    if given.only == "facts":
        from boxes import Box
        from facts import facts

        arguments = {"device_name": given.device, "small": given.tiny}
        return [Box(name="facts", run=facts, arguments=arguments, seconds=30)]
    from program import NEEDS_GIB, program
    from setting import Setting

    setting = Setting(
        device=given.device, tiny=given.tiny, scratch=scratch, out=given.out.resolve(), weights=given.weights
    )
    wanted = tuple(filter(None, given.only.split(",")))
    boxes = [box for box in program(setting, with_pytest=given.pytest) if not wanted or box.name.startswith(wanted)]
    room = _gpu_gib()
    if given.tiny or room is None:
        return boxes
    small = [name for name, needs in NEEDS_GIB.items() if needs > room]
    if small:
        print(f"the GPU has {room:.0f} GiB: the phases of {', '.join(small)} are left out", file=sys.stderr)
    return [box for box in boxes if box.arguments.get("net") not in small]


def _gpu_gib() -> float | None:
    """Memory of the smallest GPU, asked of nvidia-smi: this process must not touch it."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return min(float(line) for line in lines) / 1024
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def _run(given: argparse.Namespace, boxes: Sequence["Box"]) -> int:
    """Run the phases, write all records into one file, print the table."""
    from boxes import Journal, run_boxes
    from summary import results_file, table

    journal = Journal(file=given.out / "results.jsonl")
    journal.file.unlink(missing_ok=True)
    started = time.monotonic()
    run_boxes(boxes, journal, given.budget, say=lambda line: print(line, file=sys.stderr, flush=True))
    records = journal.read()
    file = given.out / results_file(records)
    file.write_text(json.dumps({"command": sys.argv[1:], "records": records}, indent=1) + "\n", encoding="utf-8")
    print(table(records))
    print(f"{time.monotonic() - started:.0f} s; all of it is in {file}")
    done = {record["phase"] for record in records if record.get("status") == "done" and "limit" in record}
    return 0 if done >= {box.name for box in boxes} else 1


if __name__ == "__main__":
    sys.exit(main())
