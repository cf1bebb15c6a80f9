"""A dataset that batchgen wrote, or is writing: one object through which shards, rows and images are reached.

Knows how a dataset is begun and read; how a shard is added is the business of `commit`.
"""

import json
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from batchgen.dataset.format import OutputFormat, conflict, format_record, left_out, read_format
from batchgen.dataset.layouts.layout import DatasetLayout
from batchgen.dataset.tables import about, damage_named
from batchgen.errors import AlreadyExists, Damaged, InputError, NotFound
from batchgen.manifest.arrow import python_rows
from batchgen.models.catalog import NOT_BEGUN, ModelDefaults
from batchgen.storage import Store, open_store, read_json

if TYPE_CHECKING:
    import pandas
    from PIL.Image import Image

__all__ = ["Dataset", "DatasetRow", "Marker", "begun_with", "open_dataset"]

RECORD = ".batchgen/output.json"
READERS = 16  # objects fetched side by side: at 20 ms a GET, 800 a second


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """A committed shard: its metadata, and what its writer said of itself."""

    shard: str
    table: pa.Table
    about: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRow:
    """One row of a dataset: its metadata, and its images, which are read when they are asked for."""

    dataset: "Dataset"
    shard: str
    cells: Mapping[str, Any]  # by column

    def image(self) -> bytes:
        """The encoded image.

        Raises:
            StoreError: it cannot be read.
        """
        return self._bytes(self.cells[self.dataset.layout.image.name])

    def step_images(self) -> dict[int, bytes]:
        """The encoded images after the steps that the job's `save_steps` names, by step."""
        return {one["step"]: self._bytes(self._side(one)) for one in self.cells["step_images"] or ()}

    def control_images(self) -> dict[str, bytes]:
        """What ControlNets were given, encoded, by the names of the row's control images: edges, depth, poses.

        Empty where the job did not say `save_control_images`.
        """
        return {one["name"]: self._bytes(self._side(one)) for one in self.cells.get("control_images") or ()}

    def side_cells(self) -> list[Mapping[str, Any]]:
        """What the metadata says of the images beside the row's own: those after steps, then those of ControlNets."""
        return [*(self.cells["step_images"] or ()), *(self.cells.get("control_images") or ())]

    def image_keys(self) -> list[str]:
        """Keys of the objects that hold the image and those beside it, in the order of `side_cells`."""
        layout = self.dataset.layout
        cells = [self.cells[layout.image.name], *map(self._side, self.side_cells())]
        return [layout.image_key(self.shard, cell) for cell in cells]

    def _side(self, one: Mapping[str, Any]) -> Any:
        return one[self.dataset.layout.side_image.name]

    def _bytes(self, cell: Any) -> bytes:
        return self.dataset.layout.image_bytes(self.dataset.store, self.shard, cell)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """An output: where it is, and how it stores what it holds."""

    store: Store
    format: OutputFormat

    @classmethod
    def open(cls, store: Store) -> Self:
        """An existing dataset.

        Raises:
            InputError: there is none.
        """
        try:
            return cls(store=store, format=_stored_format(store, read_json(store, RECORD)))
        except NotFound:
            raise InputError(f"{store.uri} holds no batchgen output ({RECORD} is missing); check the path") from None

    @classmethod
    def begin(cls, store: Store, wanted: OutputFormat, *, create: bool) -> Self:
        """A dataset to be written to: one that exists, in the format that it was begun with, or a new one.

        An output keeps the schema that it was begun with, whatever columns came later: see `left_out`.

        Args:
            store: where it is, or will be.
            wanted: the format of a new one.
            create: begin a new one; else nothing is written.

        Raises:
            InputError: what is there cannot take rows of the wanted format, or is no dataset.
        """
        record = format_record(wanted)
        if create:
            try:
                store.create(RECORD, _encode(record))
            except AlreadyExists:
                pass
            else:
                return cls(store=store, format=wanted)
        try:
            found = read_json(store, RECORD)
        except NotFound:
            _require_empty(store)
            return cls(store=store, format=wanted)
        stored = _stored_format(store, found)
        if why := conflict(stored, wanted):
            raise InputError(f"{store.uri} {why}")
        if stored.model_defaults is not None:  # models that it did not meet before join those that it was begun with
            stored = replace(stored, model_defaults={**(wanted.model_defaults or {}), **stored.model_defaults})
        record = format_record(stored)
        whole = {"schema": record["schema"], **found}
        if "model_defaults" in record:
            whole["model_defaults"] = record["model_defaults"]
        if create and whole != found:
            store.write(RECORD, _encode(whole))
        return cls(store=store, format=stored)

    @property
    def layout(self) -> DatasetLayout:
        """How images and metadata are arranged."""
        return self.format.layout

    @property
    def uri(self) -> str:
        """Where it is."""
        return self.store.uri

    def left_out(self, wanted: OutputFormat) -> list[str]:
        """Columns of a wanted format that this dataset, being older than they are, does not take."""
        return left_out(self.format, wanted)

    def shards(self) -> list[str]:
        """Names of the shards in data/, sorted; some may not be committed yet, and have no marker."""
        return _shards(self.store, self.layout)

    def marker(self, shard: str, *, columns: Collection[str] | None = None, images: bool = False) -> Marker | None:
        """What a shard was committed with; None where it is not committed.

        Args:
            shard: its name.
            columns: those to read, as far as the marker has them; all where None.
            images: with the bytes of the images, where the layout keeps them in the marker.

        Raises:
            Damaged: the marker is there and cannot be read.
            StoreError: the store cannot.
        """
        return _read_marker(self.store, self.layout, shard, columns=columns, images=images)

    def rows(self, *, part: tuple[int, int] = (0, 1)) -> Iterator[DatasetRow]:
        """All rows, shard by shard, each once while no run changes the dataset.

        Args:
            part: which part of the shards, from 0, and of how many, for readers that share them.

        Raises:
            StoreError: a marker is damaged, or the store cannot be read.
        """
        for marker in self._markers(images=True, part=part):
            yield from self.rows_of(marker)

    def rows_of(self, marker: Marker) -> Iterator[DatasetRow]:
        """The rows of one shard, in its order."""
        for batch in marker.table.to_batches(max_chunksize=READERS):
            for cells in python_rows(batch):
                yield DatasetRow(dataset=self, shard=marker.shard, cells=cells)

    def rows_ahead(self, *, part: tuple[int, int] = (0, 1)) -> Iterator[tuple[DatasetRow, Future[bytes]]]:
        """All rows with the bytes of their images, or why there are none; the next ones are read meanwhile.

        Args:
            part: as of `rows`.

        Raises:
            StoreError: a marker cannot be read.
        """
        rows = self.rows(part=part)
        with ThreadPoolExecutor(READERS) as pool:
            ahead: deque[tuple[DatasetRow, Future[bytes]]] = deque()
            while True:
                ahead += [(row, pool.submit(row.image)) for row in islice(rows, READERS - len(ahead))]
                if not ahead:
                    return
                yield ahead.popleft()

    def images(self, *, part: tuple[int, int] = (0, 1)) -> Iterator[tuple[DatasetRow, "Image"]]:
        """All rows with their images decoded; the next ones are read meanwhile.

        Args:
            part: as of `rows`.

        Raises:
            ImageError: an image cannot be decoded.
            StoreError: a marker or an image cannot be read.
        """
        from batchgen.images import decode

        for row, image in self.rows_ahead(part=part):
            yield row, decode(image.result())

    def to_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The metadata of all rows, without the bytes of images.

        Args:
            columns: those to read, in the schema's order; all where None.

        Raises:
            InputError: there is no such column.
        """
        names = [name for name in self.format.schema.names if name not in self.layout.in_marker]
        if unknown := sorted(set(columns or ()) - set(names)):
            raise InputError(f"{self.uri} has no column {unknown[0]!r}; it has {', '.join(names)}")
        schema = pa.schema([self.format.schema.field(name) for name in names if columns is None or name in columns])
        tables = [marker.table.select(schema.names) for marker in self._markers(columns=schema.names)]
        return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in tables)])

    def to_pandas(self, columns: Sequence[str] | None = None) -> "pandas.DataFrame":
        """The same as a pandas DataFrame.

        Raises:
            InputError: there is no such column.
        """
        return self.to_table(columns).to_pandas()

    def _markers(
        self, *, columns: Collection[str] | None = None, images: bool = False, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Marker]:
        for shard in self.shards()[part[0] :: part[1]]:
            if (marker := self.marker(shard, columns=columns, images=images)) is not None:
                yield marker


def begun_with(store: Store) -> ModelDefaults | None:
    """The models' defaults that an output was begun with, as `find_model` takes them."""
    try:
        return read_format(read_json(store, RECORD)).model_defaults
    except NotFound:
        return NOT_BEGUN


def open_dataset(uri: str, storage_options: Mapping[str, Any] | None = None) -> Dataset:
    """The dataset at a path or URI; see `batchgen.open_dataset`."""
    return Dataset.open(open_store(uri, storage_options))


def _shards(store: Store, layout: DatasetLayout) -> list[str]:
    return [layout.shard_of(name) for name in store.names("data") if not name.startswith(".")]


def _read_marker(
    store: Store, layout: DatasetLayout, shard: str, *, columns: Collection[str] | None, images: bool
) -> Marker | None:
    try:
        with _marker_damage(store, layout, shard):
            table = layout.read(store, shard, columns=columns, images=images)
            said = about(table.schema)
    except NotFound:
        return None
    # a file without our own words in its schema was put there by somebody else, and is no marker
    return None if said is None else Marker(shard=shard, table=table, about=said)


def _marker_damage(store: Store, layout: DatasetLayout, shard: str) -> AbstractContextManager[None]:
    return damage_named(
        f"{store.uri}/{layout.marker_key(shard)}", "a shard that is removed from data/ is made again by the next run"
    )


def _stored_format(store: Store, record: Mapping[str, Any]) -> OutputFormat:
    """The format that an output was begun with.

    Records of metadata versions 2 and 3 hold no schema, and neither number stands for one alone: columns came within
    it. So it is that of a marker; where there is none, no reader has seen any yet, and today's will do.
    """
    stored = read_format(record)
    if "schema" in record:
        return stored
    for shard in _shards(store, stored.layout):
        with suppress(NotFound, Damaged), _marker_damage(store, stored.layout, shard):
            schema = stored.layout.read_schema(store, shard)
            if (said := about(schema)) is not None:
                own = json.dumps({"schema_version": said["schema_version"]})  # and nothing of that one shard
                return replace(stored, schema=schema.with_metadata({**schema.metadata, b"batchgen": own.encode()}))
    return stored


def _require_empty(store: Store) -> None:
    """A new output must not mix with what is there: its card, README.md, would replace another."""
    foreign = [name for name in store.names("") if not name.startswith(".")]
    if foreign:
        raise InputError(
            f"{store.uri} is no output of batchgen ({RECORD} is missing) and not empty (it holds {foreign[0]!r}); "
            "choose a new or empty folder"
        )


def _encode(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=2).encode()
