"""What `verify` finds and can repair: what is damaged is moved aside, never thrown away, and what can be rebuilt is.

The next run makes again what is missing from then on. Nothing is repaired that a later version wrote.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count

from batchgen.dataset.begun import COPY, RECORD, read_begun, write_begun
from batchgen.dataset.commit import drop_rows
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.progress import Damages, agreed_with, done_rows, read_receipts
from batchgen.dataset.receipts import write_books
from batchgen.errors import Damaged, NotFound
from batchgen.rows import Receipt
from batchgen.storage import Store

__all__ = ["ASIDE", "Finding", "apply_repairs", "move_aside"]

ASIDE = ".batchgen/damaged"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that is wrong with an output, and what repairs it; nothing does where the rest is empty."""

    text: str
    aside: Sequence[str] = ()  # keys of objects, or of folders, that are moved aside
    shard: str | None = None  # whose books are written anew
    drop: Collection[tuple[str, str]] | None = None  # its rows, by id and fingerprint, that are taken out of its marker

    @property
    def can_be_repaired(self) -> bool:
        return bool(self.aside) or self.shard is not None


def apply_repairs(dataset: Dataset, findings: Sequence[Finding]) -> None:
    """Repair what can be; done twice, as after a kill, it is as good as done once.

    Args:
        dataset: the output, which nobody else writes to.
        findings: what is wrong with it.

    Raises:
        StoreError: the store refuses.
    """
    store = dataset.store
    aside = dict.fromkeys(key for finding in findings for key in finding.aside)
    begun = read_begun(store) if aside.keys() & {RECORD, COPY} else None
    for key in aside:
        move_aside(store, key)
    if begun is not None:
        write_begun(store, begun)
    dropped: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for finding in findings:
        if finding.shard is not None and finding.drop is not None:
            dropped[finding.shard] |= set(finding.drop)
    receipts = {one.shard: one for one in read_receipts(dataset, repair=True, missing=True, damages=Damages())}
    for shard, rows in dropped.items():
        if shard in receipts:
            drop_rows(dataset, receipts[shard], rows)
    present = set(dataset.shards())
    for shard in receipts.keys() & {finding.shard for finding in findings}:
        if shard not in dropped:
            write_books(dataset, _true(dataset, receipts[shard], present))


def _true(dataset: Dataset, receipt: Receipt, present: Collection[str]) -> Receipt:
    """A receipt as the marker would have it; where the whole shard is gone, all of its rows are open."""
    if receipt.shard not in present and receipt.done:
        return replace(receipt, done=0, failures=[])
    try:
        return agreed_with(receipt, done_rows(dataset, receipt.shard))
    except Damaged:
        return receipt


def move_aside(store: Store, key: str) -> None:
    """Move an object, or all that lies in a folder of its name, below `ASIDE`.

    Raises:
        StoreError: the store refuses.
    """
    try:
        data = store.read(key)
    except NotFound:
        for entry in list(store.entries(key)):
            move_aside(store, entry.key)
        store.delete(key)  # a file system has folders left
        return
    folder, _, name = f"{ASIDE}/{key}".rpartition("/")
    taken = set(store.names(folder))
    free = next(one for one in chain([name], (f"{name}.{n}" for n in count(2))) if one not in taken)
    store.write(f"{folder}/{free}", data or b"\n")  # stores take no empty objects
    store.delete(key)
