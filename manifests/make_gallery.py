"""Lays the images of outputs out on one sheet, as the README and this folder show them.

    python manifests/make_gallery.py manifests/gallery.jpg out/controlnet out/depth-to-image

A row that starts from an image shows that image to its left.
"""

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from PIL import Image, ImageDraw, ImageFont

from batchgen import open_dataset

SIDE = 128  # pixels of an image on the sheet
GAP, STRIP = 6, 34
LINE_LETTERS = {1: 26, 2: 54}  # letters a line below one image and below a pair
STARTS = ("control_image_uri", "image_uri")


def rows_of(output: Path) -> Iterator[tuple[Mapping[str, Any], list[Image.Image]]]:
    """Rows in the order of their ids, with what they start from, if anything, and their image."""
    made = [(row.cells, image) for row, image in open_dataset(str(output)).images()]
    for cells, image in sorted(made, key=lambda pair: pair[0]["id"]):
        starts = [Image.open(cells[name]) for name in STARTS if cells[name] is not None]
        yield cells, [*starts[:1], image]


@click.command()
@click.argument("sheet", type=click.Path(path_type=Path))
@click.argument("outputs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--columns", default=6, show_default=True, help="Images side by side.")
def main(sheet: Path, outputs: tuple[Path, ...], columns: int) -> None:
    """Write SHEET from the images of OUTPUTS."""
    placed: list[tuple[int, int, Image.Image]] = []
    texts: list[tuple[int, int, str]] = []
    row, column = 0, 0
    for output in outputs:
        for cells, images in rows_of(output):
            if column + len(images) > columns:
                row, column = row + 1, 0
            lines = textwrap.wrap(cells["prompt"], LINE_LETTERS[len(images)])[:3]
            texts.append((row, column, "\n".join(lines)))
            for image in images:
                placed.append((row, column, image.convert("RGB").resize((SIDE, SIDE))))
                column += 1
    size = (columns * (SIDE + GAP) + GAP, (row + 1) * (SIDE + STRIP + GAP) + GAP)
    canvas = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=9)
    for y, x, image in placed:
        canvas.paste(image, (GAP + x * (SIDE + GAP), GAP + y * (SIDE + STRIP + GAP)))
    for y, x, text in texts:
        place = (GAP + x * (SIDE + GAP), GAP + y * (SIDE + STRIP + GAP) + SIDE + 2)
        pen.multiline_text(place, text, fill="black", font=font, spacing=1)
    canvas.save(sheet, quality=88)
    click.echo(f"{sheet}: {len(texts)} rows")


if __name__ == "__main__":
    main()
