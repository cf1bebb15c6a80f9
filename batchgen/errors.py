"""What can go wrong, sorted by who can mend it. Knows nothing of any library.

BatchgenError
├── InputError             the user's manifest, job, model or flags; nothing was started       exit 2
├── Interrupted            a signal or a limit ended the run; the same command resumes it      exit 3
└── InfrastructureError    store, cluster or model loading failed; retrying may help           exit 4
    ├── StoreError
    │   ├── AlreadyExists  a create-only write met an object of that name
    │   ├── Damaged        an object holds other bytes than batchgen writes
    │   └── NotFound
    ├── OutputBusy         another live run holds the output's lease
    ├── ModelLoadError
    └── ClusterError
"""

from typing import ClassVar

__all__ = [
    "AlreadyExists",
    "BatchgenError",
    "ClusterError",
    "Damaged",
    "InfrastructureError",
    "InputError",
    "Interrupted",
    "ModelLoadError",
    "NotFound",
    "OutputBusy",
    "StoreError",
]


class BatchgenError(Exception):
    """Base of every error that batchgen raises on purpose; its text is one line that says what to try."""

    exit_code: ClassVar[int] = 1


class InputError(BatchgenError):
    """The user's input cannot be used as it is; nothing was started."""

    exit_code = 2


class Interrupted(BatchgenError):
    """The run stopped before all rows were made; running the same command again goes on."""

    exit_code = 3


class InfrastructureError(BatchgenError):
    """Something around the job failed, not the job itself."""

    exit_code = 4


class StoreError(InfrastructureError):
    """A file system or object store refused, failed, or could not be reached."""


class AlreadyExists(StoreError):
    """A create-only write found an object of that name; the stored bytes are untouched."""


class Damaged(StoreError):
    """An object of the output holds other bytes than batchgen writes; reading it again does not help."""


class NotFound(StoreError):
    """There is no object of that name."""


class OutputBusy(InfrastructureError):
    """Another live run is writing to the same output."""


class ModelLoadError(InfrastructureError):
    """A model that looked right from outside could not be loaded."""


class ClusterError(InfrastructureError):
    """Ray could not be started or reached, or its workers keep dying."""
