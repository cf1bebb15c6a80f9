"""A dataset that batchgen wrote, or is writing: one object through which shards, rows and images are reached.

Knows how a dataset is begun and read; how a shard is added is the business of `commit`.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import pyarrow as pa

from batchgen.dataset.begun import RECORD, create_begun, read_begun, stored_format, write_begun
from batchgen.dataset.facts import MarkerFacts, marker_facts
from batchgen.dataset.format import OUTPUT, OutputFormat, conflict, format_record, left_out
from batchgen.dataset.layouts.layout import DatasetLayout
from batchgen.dataset.records import encode_record, read_record
from batchgen.dataset.side_tables import join_side_tables, side_names
from batchgen.errors import Damaged, InputError, NotFound, OutputGone
from batchgen.manifest.arrow import python_rows
from batchgen.sharding import is_key
from batchgen.storage import Store, open_store

if TYPE_CHECKING:
    import pandas
    from PIL.Image import Image

__all__ = ["Dataset", "DatasetRow", "Marker", "open_dataset"]

READERS = 16  # objects fetched side by side: at 20 ms a GET, 800 a second


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """A committed shard: its metadata, and what its writer said of itself."""

    shard: str
    table: pa.Table
    facts: MarkerFacts


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
        layout = self.dataset.layout
        data = None if cell is None else layout.image_bytes(self.dataset.store, self.shard, cell)
        if data is None:
            place = f"{self.dataset.uri}/{layout.marker_key(self.shard)}"
            raise Damaged(f"{place}, id {self.cells['id']!r}: it names no image")
        return data


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """An output: where it is, how it stores what it holds, and which one it is."""

    store: Store
    format: OutputFormat
    id: str | None = None  # that it was given when it was begun; None where it is not begun, or earlier code did

    @classmethod
    def open(cls, store: Store) -> Self:
        """An existing dataset.

        Raises:
            InputError: there is none.
        """
        try:
            found = read_begun(store)
        except NotFound:
            raise InputError(f"{store.uri} holds no batchgen output ({RECORD} is missing); check the path") from None
        return cls(store=store, format=stored_format(store, found), id=found.id)

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
        try:
            found = read_begun(store)
        except NotFound:
            _require_empty(store)
            if not create:
                return cls(store=store, format=wanted)
            new = replace(format_record(wanted), id=uuid4().hex)
            other = create_begun(store, new)
            if other is None:
                return cls(store=store, format=wanted, id=new.id)
            found = other
        stored = stored_format(store, found)
        if why := conflict(stored, wanted):
            raise InputError(f"{store.uri} {why}")
        if stored.model_defaults is not None:  # models that it did not meet before join those that it was begun with
            stored = replace(stored, model_defaults={**(wanted.model_defaults or {}), **stored.model_defaults})
        record = format_record(stored)
        # of two runs that meet an output of earlier code both give it the same name
        own = found.id or hashlib.sha256(encode_record(found)).hexdigest()[:32]
        if create:
            schema = found.schema or record.schema
            write_begun(store, replace(found, schema=schema, model_defaults=record.model_defaults, id=own))
        return cls(store=store, format=stored, id=own if create else found.id)

    def require_same(self) -> None:
        """Make sure that what is at its place is still the output that was opened.

        Raises:
            OutputGone: nothing is there, or another one.
            StoreError: the store cannot be read.
        """
        try:
            found = read_record(self.store, RECORD, OUTPUT)
        except NotFound as error:
            raise OutputGone(
                f"{self.uri}: {RECORD} is gone; the output was moved, removed or unmounted while it was in use"
            ) from error
        except Damaged:
            found = read_begun(self.store)  # by its copy
        if self.id is not None and found.id != self.id:
            raise OutputGone(f"{self.uri}: another output is there now than the one that was opened")

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
        return self.layout.shards(self.store)

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

    def to_table(self, columns: Sequence[str] | None = None, *, scores: bool = False) -> pa.Table:
        """The metadata of all rows, without the bytes of images.

        Args:
            columns: those to read, in the schema's order; all where None.
            scores: with all scores, and what was joined of evaluators; null where a row has none.

        Raises:
            InputError: there is no such column.
            Damaged: a table of scores cannot be read.
        """
        if scores:
            keys = dict.fromkeys(["id", "fingerprint", *(columns or ())])
            rows = self.to_table(None if columns is None else list(keys))
            joined = join_side_tables(self.store, self.shards(), rows, side_names(self.store))
            return joined.drop_columns([name for name in keys if columns is not None and name not in columns])
        names = [name for name in self.format.schema.names if name not in self.layout.in_marker]
        if unknown := sorted(set(columns or ()) - set(names)):
            raise InputError(f"{self.uri} has no column {unknown[0]!r}; it has {', '.join(names)}")
        schema = pa.schema([self.format.schema.field(name) for name in names if columns is None or name in columns])
        tables = [marker.table.select(schema.names) for marker in self._markers(columns=schema.names)]
        return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in tables)])

    def to_pandas(self, columns: Sequence[str] | None = None, *, scores: bool = False) -> "pandas.DataFrame":
        """The same as a pandas DataFrame.

        Raises:
            InputError: there is no such column, or no pandas.
        """
        if find_spec("pandas") is None:
            raise InputError('pandas is not installed; pip install "batchgen[pandas]" adds it, to_table() goes without')
        return self.to_table(columns, scores=scores).to_pandas()

    def _markers(
        self, *, columns: Collection[str] | None = None, images: bool = False, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Marker]:
        for shard in self.shards()[part[0] :: part[1]]:
            if (marker := self.marker(shard, columns=columns, images=images)) is not None:
                yield marker


def open_dataset(uri: str, storage_options: Mapping[str, Any] | None = None) -> Dataset:
    """The dataset at a path or URI; see `batchgen.open_dataset`."""
    return Dataset.open(open_store(uri, storage_options))


def _read_marker(
    store: Store, layout: DatasetLayout, shard: str, *, columns: Collection[str] | None, images: bool
) -> Marker | None:
    try:
        with layout.marker_damage(store, shard):
            table = layout.read(store, shard, columns=columns, images=images)
            facts = marker_facts(table.schema, f"{store.uri}/{layout.marker_key(shard)}")
            if facts is not None:
                _require_rows(table, facts, columns)
    except NotFound:
        return None
    # a file without our own words in its schema was put there by somebody else, and is no marker
    return None if facts is None else Marker(shard=shard, table=table, facts=facts)


def _require_rows(table: pa.Table, facts: MarkerFacts, columns: Collection[str] | None) -> None:
    """Make sure that a marker has what its readers count on.

    Raises:
        ValueError: it has not.
    """
    if not is_key(facts.key):
        raise ValueError("what it says of itself is no batch key")
    for name, kind in _COUNTED_ON.items():
        if columns is None or name in columns:
            if name not in table.schema.names or not kind(table.schema.field(name).type):
                raise ValueError(f"it has no column {name} of the type that it should have")
            if name in ("id", "fingerprint") and table[name].null_count:
                raise ValueError(f"its column {name} has nulls")
    if not table.num_rows:
        raise ValueError("it has no rows")


_COUNTED_ON: Mapping[str, Callable[[pa.DataType], bool]] = {
    "id": pa.types.is_string,
    "fingerprint": pa.types.is_string,
    "device": pa.types.is_string,
    "seconds": pa.types.is_floating,
}


def _require_empty(store: Store) -> None:
    """A new output must not mix with what is there: its card, README.md, would replace another."""
    foreign = [name for name in store.names("") if not name.startswith(".")]
    if foreign:
        raise InputError(
            f"{store.uri} is no output of batchgen ({RECORD} is missing) and not empty (it holds {foreign[0]!r}); "
            "choose a new or empty folder"
        )
