"""Opening failed rows again."""

import time
from collections.abc import Collection, Mapping
from typing import Any

from batchgen.dataset.commit import withdraw_failures
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.lease import Lease
from batchgen.dataset.progress import Damages, read_receipts
from batchgen.dataset.runs import new_run_name
from batchgen.errors import ErrorClass, InputError
from batchgen.storage import open_store

__all__ = ["retry"]


def retry(uri: str, classes: Collection[str], storage_options: Mapping[str, Any] | None = None) -> int:
    """Open an output's failed rows again for the next run; returns how many.

    Args:
        uri: the output.
        classes: error classes, or what earlier versions called them and this output holds; all where empty.
        storage_options: passed to the fsspec file system over what the environment says.

    Raises:
        InputError: there is no output, or no such error class.
        OutputBusy: a run is writing to it.
    """
    dataset = Dataset.open(open_store(uri, storage_options))
    with Lease(dataset.store, new_run_name(time.time())):
        receipts = list(read_receipts(dataset, repair=True, damages=Damages()))
        recorded = {row.error_class for receipt in receipts for row in receipt.failures}
        for name in classes:
            if name not in recorded | set(ErrorClass):
                known = ", ".join([*ErrorClass, *sorted(recorded - set(ErrorClass))])
                raise InputError(f"no error class {name!r}; known are {known}")
        chosen = [
            (receipt, rows)
            for receipt in receipts
            if (rows := [row for row in receipt.failures if not classes or row.error_class in classes])
        ]
        if chosen:
            withdraw_failures(dataset, chosen)
        return len({(row.id, row.fingerprint) for _, rows in chosen for row in rows})
