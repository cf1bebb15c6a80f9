"""What markers, ledgers and receipts say of a shard, as types. Knows nothing of where they lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import pyarrow as pa

from batchgen.dataset.records import Count, RecordKind, decode_record
from batchgen.dataset.schema import VERSION
from batchgen.dataset.tables import own_words
from batchgen.rows import FailedRow

__all__ = ["MarkerFacts", "StoredFailure", "marker_facts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFailure:
    """A failed row."""

    id: str
    fingerprint: str
    error_class: str
    error: str
    attempts: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] = 1  # int32 in ledgers

    def row(self) -> FailedRow:
        """The same as other code knows it."""
        return FailedRow(
            id=self.id,
            fingerprint=self.fingerprint,
            error_class=self.error_class,
            error=self.error,
            attempts=self.attempts,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkerFacts:
    """What a marker's writer says of its shard beside the rows."""

    attempt: str
    run: str
    key: str  # the batch key
    finished: float  # Unix time
    bytes: Count  # encoded images
    failed: Sequence[StoredFailure]
    schema_version: Count
    carried_prints: str | None = None  # see `carried`


_FACTS = RecordKind(MarkerFacts, VERSION, "schema_version")


def marker_facts(schema: pa.Schema, place: str) -> MarkerFacts | None:
    """What a marker says; None where a table is not of batchgen.

    Args:
        schema: the marker's.
        place: where it lies, for errors.

    Raises:
        LaterVersion, Damaged: it says other things than markers do.
    """
    own = own_words(schema)
    return None if own is None else decode_record(own, _FACTS, place)
