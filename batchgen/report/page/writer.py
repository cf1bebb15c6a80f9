"""Writes a report: images are read once, thumbnails and data go into few objects, at any place that takes objects.

index.html, report.css, report.js, vendor/    the page; opens from a file as well as from a bucket
data/index.js        axes, scores and places of all images; effects, runs, failures
data/rows-000.js     every parameter of 500 images, fetched when one of them is opened
data/charts.js       Vega-Lite specifications
thumbs/000.webp      256 thumbnails
images/            the images themselves, where the report does not lie in the output that holds them
pivot.csv, pivot.parquet, sheet.png
"""

import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image

from batchgen.dataset.begun import RECORD
from batchgen.dataset.dataset import Dataset, DatasetRow, open_dataset
from batchgen.dataset.progress import Damages, read_receipts
from batchgen.dataset.runs import latest_run
from batchgen.dataset.schema import manifest_cells
from batchgen.errors import InputError, StoreError
from batchgen.images import encode
from batchgen.manifest.sweep import label
from batchgen.models.catalog import Model, find_model
from batchgen.options import ImageFormat
from batchgen.report.grid import draw_grids
from batchgen.report.page.charts import charts
from batchgen.report.page.collect import Axis, Shown, find_axes, finite, plain_cells
from batchgen.report.page.effects import effects
from batchgen.report.page.sheet import axes_grid
from batchgen.report.page.sprites import ACROSS, PER_SHEET, SIDE, sheets
from batchgen.rows import Receipt
from batchgen.scoring.groups import read_groups
from batchgen.scoring.tables import scores_of
from batchgen.storage import Store, open_store

__all__ = ["ReportSummary", "write_report"]

ROWS_A_CHUNK = 500  # images whose parameters are in one object: some 500 kB
READERS = 16  # images fetched side by side
MOST_FAILURES = 1000  # that are listed
PAGE = "index.html"
OURS = b'href="report.css"'  # in the page of every report


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSummary:
    """What a report shows."""

    report: str
    images: int
    unreadable: int
    axes: Sequence[str]
    scores: Sequence[str]
    failed: int


def write_report(
    outputs: Sequence[str], folder: str, *, copy: bool = False, storage_options: Mapping[str, Any] | None = None
) -> ReportSummary:
    """Write a report of outputs into a folder.

    Args:
        outputs: URIs; each is shown under its last name.
        folder: path or URI of the report; one that is there already is replaced.
        copy: copy the images into the report even where it lies in the output and could link to them.
        storage_options: passed to the fsspec file systems over what the environment says.

    Raises:
        InputError: an output is none, or holds no image; or the folder is an output, or has another page.
        StoreError: an output cannot be read, or the report not be written.
    """
    datasets = {name: open_dataset(uri, storage_options) for name, uri in _named(outputs).items()}
    store = open_store(folder, storage_options)
    _require_place(store)
    shown: list[Shown] = []
    images = _gathered(datasets, store, copy, shown)
    for number, packed in enumerate(sheets(images)):
        store.write(f"thumbs/{number:03d}.webp", packed)
    if not shown:
        raise InputError(f"{', '.join(outputs)}: no image is done yet; there is nothing to show")
    axes = find_axes(shown)
    scores = list(dict.fromkeys(name for one in shown for name in one.scores))
    points = [(one.at, one.scores) for one in shown]
    found = effects(points, axes, scores)
    receipts = {
        name: list(read_receipts(dataset, repair=False, damages=Damages())) for name, dataset in datasets.items()
    }
    failures = [failure for name, own in receipts.items() for failure in _failures(name, own)]
    index = {
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "outputs": list(datasets),
        "axes": [{"name": axis.name, "values": axis.values, "number": axis.is_number} for axis in axes],
        "at": {axis.name: _places(shown, axis) for axis in axes},
        "scores": {name: [one.scores.get(name) for one in shown] for name in scores},
        "ids": [one.cells["id"] for one in shown],
        "links": [one.link for one in shown],
        "sprite": {"side": SIDE, "per": PER_SHEET, "across": ACROSS},
        "chunk": ROWS_A_CHUNK,
        "effects": [asdict(effect) for effect in found],
        "sets": [group for name, dataset in datasets.items() for group in _sets(name, dataset)],
        "runs": [_facts(name, dataset, receipts[name]) for name, dataset in datasets.items()],
        "failures": failures[:MOST_FAILURES],
        "failed": len(failures),
    }
    _write_script(store, "data/index.js", "index", index)
    find = cache(_at_hand)
    for number, start in enumerate(range(0, len(shown), ROWS_A_CHUNK)):
        rows = [_detail(one, find) for one in shown[start : start + ROWS_A_CHUNK]]
        _write_script(store, f"data/rows-{number:03d}.js", "rows", {"chunk": number, "rows": rows})
    _write_script(store, "data/charts.js", "charts", charts(points, axes, scores, found))
    _write_pivot(store, shown, axes, scores)
    sheet = draw_grids([axes_grid([one.at for one in shown], axes, _Thumbnails(store).image)])
    store.write("sheet.png", encode(np.asarray(sheet), ImageFormat.PNG))
    _write_page(store)
    return ReportSummary(
        report=store.uri,
        images=len(shown),
        unreadable=sum(one.link is None for one in shown),
        axes=[axis.name for axis in axes],
        scores=scores,
        failed=len(failures),
    )


def _require_place(store: Store) -> None:
    """Refuse a folder in which a report would be written over somebody's own files, or into an output's `data/`.

    Raises:
        InputError: it is one.
    """
    names = store.names("")
    if PAGE in names and OURS not in store.read(PAGE):
        raise InputError(
            f"--output {store.uri}: its {PAGE} is no report of batchgen; name another folder, or move it away"
        )
    if PurePosixPath(RECORD).parts[0] in names:
        raise InputError(
            f"--output {store.uri}: is an output itself; name a folder of the report's own, such as {store.uri}/report"
        )


def _named(outputs: Sequence[str]) -> dict[str, str]:
    """The outputs by their last names; by their whole URIs where those are equal."""
    names = [PurePosixPath(uri.rstrip("/")).name or uri for uri in outputs]
    return {name if names.count(name) == 1 else uri: uri for name, uri in zip(names, outputs, strict=True)}


def _gathered(datasets: Mapping[str, Dataset], store: Store, copy: bool, shown: list[Shown]) -> Iterator[bytes]:
    """The images of all outputs, in order; what is shown of each is appended, and it is copied where it must be."""
    for name, dataset in datasets.items():
        scores = scores_of(dataset)
        base = None if copy else _way(store.uri, dataset)
        for row, image in dataset.rows_ahead():
            data, link = _bytes(image), None
            if data is not None and base is not None:
                link = base + row.image_keys()[0]
            elif data is not None:
                link = f"images/{len(shown):06d}.{dataset.format.image_format.value}"
                store.write(link, data)
            cells = plain_cells(row)
            shown.append(
                Shown(
                    cells=cells,
                    output=name,
                    link=link,
                    scores=finite(scores.get(cells["id"], {})),
                    controls=_controls(row, base, store, f"images/{len(shown):06d}"),
                )
            )
            yield data or b""


def _controls(row: DatasetRow, base: str | None, store: Store, stem: str) -> dict[str, str]:
    """Links to what a row's ControlNets were given, by what was made of the image first; copied where it must be."""
    kept = row.cells.get("control_images") or ()
    if not kept:
        return {}
    names = [one["name"] for one in kept]
    labels = [f"{name}, {how}" for name, how in zip(names, row.cells["control_preprocess"], strict=True)]
    if base is not None:
        return dict(zip(labels, (base + key for key in row.image_keys()[-len(kept) :]), strict=True))
    try:
        images = row.control_images()
    except StoreError:
        return {}
    links = {name: f"{stem}.{name}.{row.dataset.format.image_format.value}" for name in names}
    for name, link in links.items():
        store.write(link, images[name])
    return dict(zip(labels, links.values(), strict=True))


def _bytes(image: Future[bytes]) -> bytes | None:
    """An image's bytes; None where it cannot be read."""
    try:
        return image.result()
    except StoreError:
        return None


def _way(report: str, dataset: Dataset) -> str | None:
    """The way from a report to the output that it lies in; None where there is nothing to link to."""
    if not dataset.layout.objects_a_row or not report.startswith(dataset.uri.rstrip("/") + "/"):
        return None
    return "../" * len(PurePosixPath(report.removeprefix(dataset.uri)).relative_to("/").parts)


def _places(shown: Sequence[Shown], axis: Axis) -> list[int]:
    """For each image the place of its value among those of the axis."""
    place = {label(value): number for number, value in enumerate(axis.values)}
    return [place[one.at[axis.name]] for one in shown]


def _at_hand(name: str) -> Model | None:
    """The model of that name, where it is at hand: reports are written elsewhere, too."""
    try:
        return find_model(name)
    except InputError:
        return None


def _detail(one: Shown, find: Callable[[str], Model | None]) -> dict[str, Any]:
    """What is shown of an image that is opened."""
    row = json.dumps(manifest_cells(one.cells, find), ensure_ascii=False, default=str)
    cells = {name: _plain(cell) for name, cell in one.cells.items()}
    return {"cells": cells, "row": row, "controls": list(one.controls.items())}


def _plain(cell: Any) -> Any:
    shown = isinstance(cell, (str, int)) or (isinstance(cell, float) and math.isfinite(cell))
    return cell if shown else json.dumps(cell, ensure_ascii=False, default=str)


def _facts(name: str, dataset: Dataset, receipts: Sequence[Receipt]) -> dict[str, Any]:
    """The latest run over an output, and what all took together."""
    record = latest_run(dataset.store, Damages())
    seconds, done = sum(one.seconds for one in receipts), sum(one.done for one in receipts)
    facts = {"output": name, "images": done, "device seconds": round(seconds, 1), "shards": len(receipts)}
    facts["images a device second"] = round(done / seconds, 3) if seconds else None
    if record is not None:
        facts |= {"outcome": record.outcome, "host": record.host, "device": record.device, "dtype": record.dtype}
        facts |= {"workers": record.workers, "batchgen": record.batchgen, "source": record.source}
        if record.finished is not None:
            facts["seconds of the latest run"] = round(record.finished - record.started, 1)
    return facts


def _sets(name: str, dataset: Dataset) -> Iterator[dict[str, Any]]:
    """What metrics of sets say of groups of an output's images, as far as it is of the rows that there are now."""
    for table in read_groups(dataset):
        said = {"output": name, "metric": table.metric, **table.about["model_names"]}
        for group in table.groups:
            place = ", ".join(f"{column} = {value}" for column, value in group.values.items()) or "all"
            value, deviation = group.scores.get(table.metric), group.scores.get(f"{table.metric}_std")
            yield {**said, "group": place, "rows": group.rows, "value": value, "deviation": deviation}


def _failures(name: str, receipts: Sequence[Receipt]) -> Iterator[dict[str, str]]:
    for receipt in receipts:
        for row in receipt.failures:
            yield {"output": name, "id": row.id, "class": row.error_class, "error": row.error}


def _write_script(store: Store, key: str, name: str, content: Any) -> None:
    """Data as a script, since pages that are opened as files may fetch nothing else."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False, default=str)
    store.write(key, f"report.{name}({text});\n".encode())


def _write_pivot(store: Store, shown: Sequence[Shown], axes: Sequence[Axis], scores: Sequence[str]) -> None:
    """Mean scores and numbers of images for each cell of the grid."""
    cells: dict[tuple[str, ...], list[Shown]] = {}
    for one in shown:
        cells.setdefault(tuple(one.at[axis.name] for axis in axes), []).append(one)
    columns: dict[str, list[Any]] = {
        axis.name: [float(place[number]) if axis.is_number else place[number] for place in cells]
        for number, axis in enumerate(axes)
    }
    columns["images" if "images" not in columns else "number of images"] = [len(ones) for ones in cells.values()]
    for name in scores:
        known = [[one.scores[name] for one in ones if name in one.scores] for ones in cells.values()]
        columns[f"{name} (mean)"] = [sum(values) / len(values) if values else None for values in known]
    table = pa.table(columns)
    for key, write in (("pivot.csv", pyarrow.csv.write_csv), ("pivot.parquet", pq.write_table)):
        stream = io.BytesIO()
        write(table, stream)
        store.write(key, stream.getvalue())


class _Thumbnails:
    """The thumbnails that were written, cut out of their sheets."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: tuple[int, Image.Image] | None = None

    def image(self, number: int) -> Image.Image:
        """The thumbnail of an image by its number."""
        sheet, place = divmod(number, PER_SHEET)
        if self._known is None or self._known[0] != sheet:
            image = Image.open(io.BytesIO(self._store.read(f"thumbs/{sheet:03d}.webp"))).convert("RGB")
            self._known = sheet, image
        left, top = place % ACROSS * SIDE, place // ACROSS * SIDE
        return self._known[1].crop((left, top, left + SIDE, top + SIDE))


def _write_page(store: Store, at: Any = None, prefix: str = "") -> None:
    for item in (resources.files("batchgen.report.page") / "static" if at is None else at).iterdir():
        if item.is_dir():
            _write_page(store, item, f"{prefix}{item.name}/")
        else:
            store.write(prefix + item.name, item.read_bytes())
