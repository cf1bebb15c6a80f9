"""What a store is: a folder of objects, wherever it lies."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Entry", "Store"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A stored object: its key below the store's root, its size in bytes, and what changes when it does."""

    key: str
    size: int
    version: str = ""  # modification time in ns, or a store's tag of the content; empty where neither is known


class Store(Protocol):
    """A folder of objects, by key with `/` between names. Every method raises `StoreError`."""

    uri: str

    def read(self, key: str) -> bytes:
        """The object's bytes; `NotFound` where there is none."""

    def read_part(self, key: str, start: int, end: int) -> bytes:
        """The object's bytes from `start` up to `end` or its own end, without the others; `NotFound` as above."""

    def size(self, key: str) -> int:
        """The object's size in bytes; `NotFound` where there is none."""

    def create(self, key: str, data: bytes) -> None:
        """Store whole or not at all; `AlreadyExists` where the key is taken, whoever came first."""

    def write(self, key: str, data: bytes) -> None:
        """Store whole or not at all, over what is there."""

    def names(self, prefix: str) -> list[str]:
        """Names directly below a prefix, folders without their slash, sorted; none where nothing is there."""

    def entries(self, prefix: str) -> Iterator[Entry]:
        """All objects below a prefix."""

    def delete(self, key: str) -> None:
        """Remove an object, or the empty folders that lie in an object's place; no error where there is none."""
