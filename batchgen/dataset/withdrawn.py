"""Failures that count no more: `retry` opened their rows again, or the rows were made since.

What failed a marker says for good, since it is not written again for that. So `.batchgen/withdrawn.json` holds which of
these failures were withdrawn, by the attempt that they are of; whoever reads failures leaves them out. It is written
before the books of any shard, in one write: from then on they count for nobody, whatever else is lost or killed. A row
that fails anew does so in another attempt.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from batchgen.dataset.records import Count, RecordKind, encode_record, read_record
from batchgen.errors import Damaged, NotFound
from batchgen.rows import FailedRow, Receipt
from batchgen.storage import Store

__all__ = ["WITHDRAWN", "Withdrawn", "read_withdrawn", "write_withdrawn"]

WITHDRAWN = ".batchgen/withdrawn.json"
VERSION = 1
_REMEDY = (
    "rows that were opened again may count as failed, and can be opened again; `batchgen verify --repair` moves it"
)

_Attempt = tuple[str, str, str]
"""Shard, attempt and run."""

_Row = tuple[str, str]
"""Id and fingerprint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Of:
    """Failures of one attempt at a shard that count no more."""

    shard: str
    attempt: str
    run: str
    rows: Sequence[_Row]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    withdrawn: Sequence[_Of]
    version: Count = VERSION


_KIND = RecordKind(_Record, VERSION)


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """All failures of an output that count no more."""

    rows: Mapping[_Attempt, Set[_Row]] = field(default_factory=dict)

    def counting(self, receipt: Receipt) -> Receipt:
        """The receipt with the failures that count: itself, where all do."""
        withdrawn = self.rows.get((receipt.shard, receipt.attempt, receipt.run))
        if withdrawn is None or not any((row.id, row.fingerprint) in withdrawn for row in receipt.failures):
            return receipt
        return replace(
            receipt, failures=[row for row in receipt.failures if (row.id, row.fingerprint) not in withdrawn]
        )

    def joined(self, chosen: Sequence[tuple[Receipt, Sequence[FailedRow]]]) -> "Withdrawn":
        """With failures of these receipts besides."""
        rows: dict[_Attempt, set[_Row]] = defaultdict(set, {place: set(one) for place, one in self.rows.items()})
        for receipt, failed in chosen:
            rows[receipt.shard, receipt.attempt, receipt.run] |= {(row.id, row.fingerprint) for row in failed}
        return Withdrawn(rows)


def read_withdrawn(store: Store, damaged: Callable[[str], None] | None = None) -> Withdrawn:
    """The failures of an output that count no more.

    Args:
        store: the output.
        damaged: called with the error's text where the record cannot be read, which then counts for none.

    Raises:
        Damaged: it cannot be read, and there is no `damaged`.
    """
    try:
        record = read_record(store, WITHDRAWN, _KIND, _REMEDY)
    except NotFound:
        return Withdrawn()
    except Damaged as error:
        if damaged is None:
            raise
        damaged(str(error))
        return Withdrawn()
    return Withdrawn({(one.shard, one.attempt, one.run): set(one.rows) for one in record.withdrawn})


def write_withdrawn(store: Store, withdrawn: Withdrawn) -> None:
    """Store them, over what is there.

    Raises:
        StoreError: it cannot be written.
    """
    found = [
        _Of(shard=shard, attempt=attempt, run=run, rows=sorted(rows))
        for (shard, attempt, run), rows in sorted(withdrawn.rows.items())
    ]
    store.write(WITHDRAWN, encode_record(_Record(withdrawn=found)))
