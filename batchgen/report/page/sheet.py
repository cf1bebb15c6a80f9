"""A contact sheet of a report: its first two axes as rows and columns, for papers and chats."""

from collections.abc import Callable, Mapping, Sequence

from PIL import Image

from batchgen.manifest.sweep import label
from batchgen.report.grid import Grid, Tile
from batchgen.report.page.collect import Axis

__all__ = ["axes_grid"]

_MOST = 24  # values of an axis on the sheet


def axes_grid(at: Sequence[Mapping[str, str]], axes: Sequence[Axis], image: Callable[[int], Image.Image]) -> Grid:
    """The first two axes as rows and columns, every other at its first value; a cell shows its first image.

    Args:
        at: labels by axis, for each image.
        axes: what they differ in; seeds are no row or column while there is another.
        image: the thumbnail of an image by its number.
    """
    ordered = sorted(axes, key=lambda axis: axis.name == "seed")
    down, across = ordered[0], ordered[1] if len(ordered) > 1 else None
    others = {axis.name: label(axis.values[0]) for axis in ordered[2:]}
    first: dict[tuple[str, str], int] = {}
    for number, labels in enumerate(at):
        if all(labels[name] == value for name, value in others.items()):
            first.setdefault((labels[down.name], labels[across.name] if across else ""), number)
    names = [label(value) for value in down.values][:_MOST]
    columns = [label(value) for value in across.values][:_MOST] if across else [""]
    title = f"{down.name} down" + (f", {across.name} across" if across else "")
    fixed = ", ".join(f"{name} = {value}" for name, value in others.items())

    def tile(place: tuple[str, str]) -> Tile | None:
        return Tile(images=[image(first[place])]) if place in first else None

    return Grid(
        rows=[[tile((name, column)) for column in columns] for name in names],
        title=f"{title}\n{fixed}",
        across=columns if across else (),
        down=names,
    )
