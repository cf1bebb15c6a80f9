"""The bare loop that `batchgen run` is measured against: StableDiffusionPipeline on one manifest, nothing written.

One process, torch's own number of threads (all cores), images as PIL images. Prints one JSON object.
"""

import argparse
import json
import time
from typing import Any

import pyarrow.parquet as pq
import torch
from diffusers import StableDiffusionPipeline

__all__ = ["main"]


def load(folder: str, device: str) -> Any:
    """The pipeline in the precision that `batchgen run` takes by default: float32 on CPU, float16 on CUDA."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder,
        torch_dtype=torch.float16 if device == "cuda" else torch.float32,
        use_safetensors=True,
        local_files_only=True,
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def generate(pipeline: Any, rows: list[dict[str, Any]]) -> int:
    """One call; returns the number of images, which are on the host then."""
    images = pipeline(
        prompt=[row["prompt"] for row in rows],
        generator=[torch.Generator("cpu").manual_seed(row["seed"]) for row in rows],
        num_inference_steps=rows[0]["num_inference_steps"],
        guidance_scale=rows[0]["guidance_scale"],
        output_type="pil",
    ).images
    return len(images)


def synchronize(device: str) -> None:
    """Wait for the device, so that the clock sees its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest")
    parser.add_argument("--model", required=True, metavar="FOLDER")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    arguments = parser.parse_args()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, size = pq.read_table(arguments.manifest).to_pylist(), arguments.batch_size
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    pipeline = load(arguments.model, device)
    generate(pipeline, batches[0])  # warm-up: allocations, kernels' choices
    synchronize(device)
    started = time.perf_counter()
    images = sum(generate(pipeline, batch) for batch in batches)
    synchronize(device)
    seconds = time.perf_counter() - started
    about = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "threads": torch.get_num_threads()}
    print(json.dumps({"images": images, "seconds": seconds, "rate": images / seconds, **about}))


if __name__ == "__main__":
    main()
