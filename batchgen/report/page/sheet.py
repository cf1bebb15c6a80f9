"""A contact sheet with labelled axes, as one PNG for papers and chats."""

import io
from collections.abc import Callable, Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from batchgen.manifest.sweep import label
from batchgen.report.page.collect import Axis
from batchgen.report.page.sprites import SIDE

__all__ = ["draw_axes"]

_MOST = 24  # values of an axis on the sheet
_GAP, _LINE = 4, 16  # pixels
_LABEL_WIDTH = 176  # pixels, left of the rows
_INK, _FAINT = (32, 32, 36), (120, 122, 130)


def draw_axes(at: Sequence[Mapping[str, str]], axes: Sequence[Axis], image: Callable[[int], Image.Image]) -> bytes:
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
    rows = [label(value) for value in down.values][:_MOST]
    columns = [label(value) for value in across.values][:_MOST] if across else [""]
    top = 4 * _LINE
    size = (_LABEL_WIDTH + len(columns) * (SIDE + _GAP), top + len(rows) * (SIDE + _GAP))
    sheet = Image.new("RGB", (max(size[0], 480), size[1]), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    title = f"{down.name} down" + (f", {across.name} across" if across else "")
    fixed = ", ".join(f"{name} = {value}" for name, value in others.items())
    pen.text((_GAP, _GAP), _short(title, pen, font, sheet.width - 2 * _GAP), fill=_INK, font=font)
    pen.text((_GAP, _GAP + _LINE), _short(fixed, pen, font, sheet.width - 2 * _GAP), fill=_FAINT, font=font)
    for place, name in enumerate(columns):
        left = _LABEL_WIDTH + place * (SIDE + _GAP)
        pen.text((left, top - _LINE - 2), _short(name, pen, font, SIDE), fill=_INK, font=font)
    for place, name in enumerate(rows):
        upper = top + place * (SIDE + _GAP)
        for line, text in enumerate(_lines(name, pen, font)):
            pen.text((_GAP, upper + line * _LINE), text, fill=_INK, font=font)
        for column, value in enumerate(columns):
            if (shown := first.get((name, value))) is not None:
                sheet.paste(image(shown), (_LABEL_WIDTH + column * (SIDE + _GAP), upper))
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    return stream.getvalue()


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _short(text: str, pen: ImageDraw.ImageDraw, font: _Font, width: int) -> str:
    """The text, cut to a width in pixels."""
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."


def _lines(text: str, pen: ImageDraw.ImageDraw, font: _Font) -> list[str]:
    """The text broken to the width of row labels, as many lines as a thumbnail is high."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if pen.textlength(joined, font=font) <= _LABEL_WIDTH - 2 * _GAP:
            lines[-1] = joined
        else:
            lines.append(_short(word, pen, font, _LABEL_WIDTH - 2 * _GAP))
    return lines[: SIDE // _LINE]
