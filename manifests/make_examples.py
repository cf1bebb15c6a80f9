"""Writes the example manifests of this folder and the images they start from.

    python manifests/make_examples.py

The images come from the renderer of the built-in model's recipe, so that anyone can make them again.
"""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.builtin.renderer import render
from jobs.builtin.scenes import Background, Color, Finish, Scene, Shape, Size, Thing

FOLDER = Path(__file__).parent

GUIDANCE = 3.5  # where the built-in model scores best; the usual 7.5 hardens its shapes
QUICKSTART = (
    "a large red sphere on a white background",
    "a small blue cube on a gray background",
    "a large shiny green cylinder on a checkered floor",
    "a large yellow cone on a purple background",
    "a large orange ring on a blue background",
    "a large purple sphere in the desert",
    "a small red cube in a meadow",
    "a large white cone under a night sky",
    "a large cyan cylinder at sunset",
    "a small green ring on a pink background",
    "a large matt yellow cube on a black background",
    "a large shiny blue sphere on a checkered floor",
    "a red sphere left of a blue cube on a white background",
    "a green cone left of a yellow cylinder on a gray background",
    "a purple ring left of an orange sphere on a black background",
    "a white cube left of a red cone in a meadow",
    "a cyan sphere left of a green cube at sunset",
    "a yellow cylinder left of a blue ring in the desert",
    "a large red cone in a meadow",
    "a large green sphere under a night sky",
    "a small orange cylinder on a green background",
    "a large shiny purple cube at sunset",
    "a large blue cone on a yellow background",
    "a large cyan ring on a checkered floor",
)


def _thing(shape: Shape, color: Color) -> Thing:
    return Thing(shape=shape, color=color, size=Size.LARGE, finish=Finish.MATT, x=0.0, z=0.1, yaw=0.5, scale=1.0)


def _scene(shape: Shape, color: Color, background: Background) -> Scene:
    return Scene(
        background=background,
        things=(_thing(shape, color),),
        camera_height=2.1,
        sun_azimuth=2.3,
        sun_elevation=0.9,
        detail=7,
    )


STARTS = {
    "red-sphere": _scene(Shape.SPHERE, Color.RED, Background.WHITE),
    "blue-cube": _scene(Shape.CUBE, Color.BLUE, Background.GRAY),
    "green-cone": _scene(Shape.CONE, Color.GREEN, Background.MEADOW),
}

IMAGE_TO_IMAGE = (
    ("sphere-to-orange", "red-sphere", "a large orange sphere on a white background", 0.5),
    ("sphere-to-cube", "red-sphere", "a large red cube on a white background", 0.8),
    ("cube-to-green", "blue-cube", "a large green cube on a gray background", 0.6),
    ("cube-to-sunset", "blue-cube", "a large blue cube at sunset", 0.85),
    ("cone-kept", "green-cone", "a large green cone in a meadow", 0.2),
    ("cone-to-night", "green-cone", "a large green cone under a night sky", 0.9),
)

NINE_CHANNELS: dict[str, object] = {"model": "builtin-inpainting"}
INPAINTING: tuple[tuple[str, str, str, dict[str, object]], ...] = (
    ("sphere-becomes-cube", "red-sphere", "a large blue cube on a white background", {}),
    ("sphere-becomes-ring", "red-sphere", "a large green ring on a white background", {}),
    ("cube-becomes-cone", "blue-cube", "a large yellow cone on a gray background", {}),
    ("cone-becomes-sphere", "green-cone", "a large purple sphere in a meadow", {}),
    ("nine-channels-cone", "blue-cube", "a large yellow cone on a gray background", NINE_CHANNELS),
    ("nine-channels-sphere", "green-cone", "a large purple sphere in a meadow", NINE_CHANNELS),
)


EDGES: dict[str, object] = {"controlnet": "builtin-controlnet-edges", "control_preprocess": "canny"}
DEPTH_MAP: dict[str, object] = {"controlnet": "builtin-controlnet-depth", "control_preprocess": "depth"}
CONTROLNET: tuple[tuple[str, str, str, dict[str, object]], ...] = (
    ("edges-orange-cube", "blue-cube", "a large orange cube at sunset", EDGES),
    ("edges-purple-cube", "blue-cube", "a large purple cube on a checkered floor", EDGES),
    ("edges-cyan-cone", "green-cone", "a large cyan cone on a pink background", EDGES),
    ("depth-red-cone", "green-cone", "a large red cone on a gray background", DEPTH_MAP),
    ("depth-blue-sphere", "red-sphere", "a large blue sphere on a green background", DEPTH_MAP),
    ("edges-half", "red-sphere", "a large green sphere in the desert", EDGES | {"controlnet_conditioning_scale": 0.5}),
)

DEPTH_MODEL: dict[str, object] = {"model": "builtin-depth", "strength": 1.0}
DEPTH = (
    ("depth-orange-cube", "blue-cube", "a large orange cube at sunset"),
    ("depth-white-cube", "blue-cube", "a large white cube on a blue background"),
    ("depth-cyan-cone", "green-cone", "a large cyan cone on a pink background"),
    ("depth-yellow-sphere", "red-sphere", "a large yellow sphere in the desert"),
)

UPSCALER: dict[str, object] = {"model": "builtin-upscaler", "noise_level": 0}
UPSCALING = (
    ("sphere-512", "red-sphere", "a large red sphere on a white background"),
    ("cube-512", "blue-cube", "a large blue cube on a gray background"),
    ("cone-512", "green-cone", "a large green cone in a meadow"),
)

ADAPTERS: tuple[dict[str, object], ...] = (
    {"id": "ink-none", "prompt": "a large red cube on a white background"},
    {
        "id": "ink-half",
        "prompt": "a large red cube on a white background",
        "loras": {"path": "builtin-ink", "scale": 0.5},
    },
    {"id": "ink-full", "prompt": "a large red cube on a white background, ink drawing", "loras": "builtin-ink"},
    {
        "id": "ink-in-prompt",
        "prompt": "a large cone in a meadow, ink drawing <lora:builtin-ink:1>",
        "prompt_syntax": "a1111",
    },
    {
        "id": "ruby-ring",
        "prompt": "a <ruby-ring> on a gray background",
        "embeddings": {"path": "builtin-ruby-ring", "token": "<ruby-ring>"},
    },
)


def write_starts() -> None:
    """Images, and masks that are white over the object and a margin of 6 pixels around it."""
    (FOLDER / "images").mkdir(exist_ok=True)
    for name, scene in STARTS.items():
        image = render(scene)
        Image.fromarray(image.rgb).save(FOLDER / "images" / f"{name}.png")
        rows, columns = (image.objects > 0).nonzero()
        mask = Image.new("L", (image.rgb.shape[1], image.rgb.shape[0]))
        mask.paste(255, (columns.min() - 6, rows.min() - 6, columns.max() + 7, rows.max() + 7))
        mask.save(FOLDER / "images" / f"{name}-mask.png")


def write_quickstart() -> None:
    """24 prompts in Parquet, with ids and seeds of their own."""
    table = pa.table(
        {
            "id": [f"quickstart-{number:02d}" for number in range(len(QUICKSTART))],
            "prompt": list(QUICKSTART),
            "seed": pa.array(range(1, len(QUICKSTART) + 1), pa.int64()),
            "guidance_scale": pa.array([GUIDANCE] * len(QUICKSTART), pa.float64()),
            "objects": pa.array([2 if " left of " in prompt else 1 for prompt in QUICKSTART], pa.int32()),
        }
    )
    pq.write_table(table, FOLDER / "quickstart.parquet")


def write_image_to_image() -> None:
    """Six rows in CSV: an image and a strength make the task."""
    with (FOLDER / "image-to-image.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["id", "image", "prompt", "strength", "seed", "guidance_scale"])
        for number, (name, image, prompt, strength) in enumerate(IMAGE_TO_IMAGE):
            writer.writerow([name, f"images/{image}.png", prompt, strength, number, GUIDANCE])


def write_inpainting() -> None:
    """Rows in JSONL: white in the mask is repainted, by any model or by one made for it."""
    _write_jsonl(
        "inpainting.jsonl",
        (
            {
                "id": name,
                "image": f"images/{image}.png",
                "mask_image": f"images/{image}-mask.png",
                "prompt": prompt,
                "strength": 1.0,
                "seed": number,
                **model,
            }
            for number, (name, image, prompt, model) in enumerate(INPAINTING)
        ),
    )


def _write_jsonl(name: str, rows: Iterable[Mapping[str, object]], *, guidance: float = GUIDANCE) -> None:
    with (FOLDER / name).open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({**row, "guidance_scale": guidance}) + "\n" for row in rows)


def write_companions() -> None:
    """ControlNets, depth, upscaling, LoRA and textual inversion with the built-in model's companions."""
    starts = enumerate(CONTROLNET)
    _write_jsonl(
        "controlnet.jsonl",
        (
            {"id": name, "prompt": prompt, "control_image": f"images/{image}.png", "seed": number, **control}
            for number, (name, image, prompt, control) in starts
        ),
    )
    _write_jsonl(
        "depth-to-image.jsonl",
        (
            {"id": name, "prompt": prompt, "image": f"images/{image}.png", "seed": number, **DEPTH_MODEL}
            for number, (name, image, prompt) in enumerate(DEPTH)
        ),
    )
    _write_jsonl(
        "upscaling.jsonl",
        (
            {"id": name, "prompt": prompt, "image": f"images/{image}.png", "seed": number, **UPSCALER}
            for number, (name, image, prompt) in enumerate(UPSCALING)
        ),
        guidance=1.0,  # the small image says all
    )
    _write_jsonl("adapters.jsonl", ({**row, "seed": 3} for row in ADAPTERS))


if __name__ == "__main__":
    write_starts()
    write_quickstart()
    write_image_to_image()
    write_inpainting()
    write_companions()
