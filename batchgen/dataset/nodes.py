"""Whether all nodes and the driver reach the same output and inputs: a path is another place on another machine.

The driver leaves a word in the output, `.batchgen/nodes/<run>/driver`; a worker that reads it writes it down again
under its node's name, where the driver looks for it. Both go with the run.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from batchgen.errors import InputError, NotFound, StoreError
from batchgen.storage import Store

__all__ = ["Meeting", "require_files"]

NODES = ".batchgen/nodes"
_ADVICE = "give a folder that all nodes share at one path, or s3://bucket/prefix"


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """A word by which nodes show that they read and write the same output; travels to workers."""

    run: str
    word: str

    @classmethod
    @contextmanager
    def held(cls, store: Store, run: str) -> Iterator["Meeting"]:
        """Leave a word in the output, in the driver, until the workers are stopped; it goes with their answers."""
        meeting = cls(run=run, word=uuid4().hex)
        store.write(meeting.key("driver"), meeting.word.encode())
        try:
            yield meeting
        except StoreError:
            raise  # a store in trouble is asked for no more, and what is left is in nobody's way
        except BaseException:
            meeting._end(store)
            raise
        meeting._end(store)

    def key(self, name: str) -> str:
        return f"{NODES}/{self.run}/{name}"

    def answer(self, store: Store, node: str) -> None:
        """Show that a worker on this node reads what the driver wrote, and write it back.

        Raises:
            InputError: the driver writes elsewhere.
        """
        if not self._is_at(store, "driver"):
            raise InputError(f"output {store.uri}: what lies there on this node is not what the driver sees; {_ADVICE}")
        store.write(self.key(node), self.word.encode())

    def require_answer(self, store: Store, node: str) -> None:
        """Make sure, in the driver, that what a worker on that node wrote is here.

        Raises:
            InputError: it is not.
        """
        if not self._is_at(store, node):
            raise InputError(f"output {store.uri}: what this node writes there the driver does not see; {_ADVICE}")

    def _end(self, store: Store) -> None:
        with suppress(StoreError):
            for entry in list(store.entries(f"{NODES}/{self.run}")):
                store.delete(entry.key)
            store.delete(f"{NODES}/{self.run}")

    def _is_at(self, store: Store, name: str) -> bool:
        try:
            return store.read(self.key(name)) == self.word.encode()
        except NotFound:
            return False


def require_files(files: Iterable[tuple[str, int | None]]) -> None:
    """Make sure that local files and folders are here.

    Args:
        files: path and size in bytes of each; None for a folder.

    Raises:
        InputError: one is not, or is another; the text names it.
    """
    for path, size in files:
        try:
            found = Path(path).stat().st_size
        except OSError as error:
            raise InputError(f"{path} cannot be read on this node ({error.strerror}); {_ADVICE}") from error
        if size is not None and found != size:
            raise InputError(f"{path} has {found:,} bytes on this node and {size:,} where the driver runs; {_ADVICE}")
