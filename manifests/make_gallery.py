"""Lays the images of outputs out on one sheet, as the README and this folder show them.

    python manifests/make_gallery.py manifests/gallery.jpg out/controlnet out/depth-to-image

To the left of an image stand what its row starts from and, where the output was made with `--save-control-images`, what
its ControlNets were given of it; below them the technique with its strength, and the prompt.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from PIL import Image

from batchgen import open_dataset
from batchgen.images import decode
from batchgen.models.adapters import adapter_name
from batchgen.report.grid import Grid, Tile, draw_grids, in_lines

SIDE = 128  # pixels of an image on the sheet
STARTS = ("control_image_uri", "image_uri")


def tiles_of(output: Path) -> Iterator[Tile]:
    """Rows in the order of their ids."""
    made = list(open_dataset(str(output)).images())
    for row, image in sorted(made, key=lambda pair: pair[0].cells["id"]):
        starts = [Image.open(row.cells[name]) for name in STARTS if row.cells[name] is not None]
        preprocessed = row.cells["control_preprocess"] or []
        maps = [
            decode(data)
            for data, how in zip(row.control_images().values(), preprocessed, strict=False)
            if how != "none"
        ]
        images = [one.convert("RGB").resize((SIDE, SIDE)) for one in (*starts[:1], *maps, image)]
        yield Tile(images=images, label=f"{technique(row.cells)}\n{row.cells['prompt']}")


def technique(cells: Mapping[str, Any]) -> str:
    """What makes a row's image besides its prompt, and how strongly."""
    said = [] if cells["task"] == "text-to-image" else [cells["task"]]
    if cells["strength"] is not None:
        said[-1] += f", strength {cells['strength']:g}"
    for net, how, scale in zip(
        json.loads(cells["controlnet"] or "[]"),
        cells["control_preprocess"] or [],
        cells["controlnet_conditioning_scale"] or [],
        strict=True,
    ):
        said.append(f"ControlNet {name_of(net)}, map {how}, scale {scale:g}")
    said += [f"LoRA {name_of(lora)}, scale {lora['scale']:g}" for lora in json.loads(cells["loras"] or "[]")]
    said += [f"textual inversion {one['token']}" for one in json.loads(cells["embeddings"] or "[]")]
    return "; ".join(said) or "text alone"


def name_of(adapter: Mapping[str, Any]) -> str:
    """An adapter's own name, without its folders."""
    return adapter_name(adapter["path"]).removeprefix("builtin-").removeprefix("controlnet-")


@click.command()
@click.argument("sheet", type=click.Path(path_type=Path))
@click.argument("outputs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--columns", default=6, show_default=True, help="Images side by side.")
def main(sheet: Path, outputs: tuple[Path, ...], columns: int) -> None:
    """Write SHEET from the images of OUTPUTS."""
    tiles = [tile for output in outputs for tile in tiles_of(output)]
    draw_grids([Grid(rows=in_lines(tiles, columns))]).save(sheet, quality=88)
    click.echo(f"{sheet}: {len(tiles)} rows")


if __name__ == "__main__":
    main()
