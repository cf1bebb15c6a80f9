"""JSON records that an output keeps of itself, read by one typed reader.

What does not decode is an error in a line with the place and what to do, and so is what a later version wrote. Knows
nothing of what the records mean.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from batchgen.errors import Damaged, LaterVersion, NotFound, one_line
from batchgen.storage import Store

__all__ = ["REPAIR", "Count", "RecordKind", "decode_record", "encode_record", "is_there", "read_record", "shaped"]

REPAIR = "`batchgen verify --repair` repairs that"

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""A number of things; what is damaged may hold any number."""

_Record = TypeVar("_Record")
_Shape = TypeVar("_Shape")


@dataclass(frozen=True, slots=True)
class RecordKind(Generic[_Record]):
    """A kind of record: its type, the newest version that this code reads, and the field that says the version."""

    type: type[_Record]
    newest: int
    version: str = "version"
    header: Any = field(init=False)  # decodes the version alone

    def __post_init__(self) -> None:
        header = msgspec.defstruct("Header", [(self.version, Any, None)])
        object.__setattr__(self, "header", msgspec.json.Decoder(header))


def read_record(store: Store, key: str, kind: RecordKind[_Record], remedy: str = REPAIR) -> _Record:
    """A stored record.

    Args:
        store: the output.
        key: where it lies.
        kind: what it is.
        remedy: what to do where it is damaged.

    Raises:
        NotFound: there is none.
        LaterVersion: a later version of batchgen wrote it.
        Damaged: it is none of that kind.
    """
    return decode_record(store.read(key), kind, f"{store.uri}/{key}", remedy)


def decode_record(data: bytes | str, kind: RecordKind[_Record], place: str, remedy: str = REPAIR) -> _Record:
    """The record that JSON text holds; fields that this code does not know are skipped.

    Raises:
        LaterVersion, Damaged: as `read_record`.
    """
    try:
        version = getattr(kind.header.decode(data), kind.version)
        if isinstance(version, int) and version > kind.newest:
            raise LaterVersion(
                f"{place} is of a later version of batchgen ({kind.version} {version}, this one reads {kind.newest}): "
                "upgrade batchgen"
            )
        return msgspec.json.decode(data, type=kind.type)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise Damaged(f"{place} is damaged: {one_line(error)}; {remedy}") from error


def is_there(store: Store, key: str) -> bool:
    """Whether there is an object of that name."""
    try:
        store.size(key)
    except NotFound:
        return False
    return True


def shaped(value: Any, kind: type[_Shape]) -> _Shape:
    """What a record holds of another module's, in that module's type.

    Raises:
        ValueError: it is nothing of the kind.
    """
    try:
        return msgspec.convert(value, kind)
    except RecursionError as error:
        raise ValueError(one_line(error)) from error


def encode_record(record: Any, *, indent: int = 0) -> bytes:
    """A record as JSON that `decode_record` takes; halves of characters, which JSON cannot hold, are spelt out."""
    try:
        text = msgspec.json.encode(record)
    except UnicodeEncodeError:
        text = msgspec.json.encode(_spelt_out(msgspec.to_builtins(record)))
    return msgspec.json.format(text, indent=indent) if indent else text


def _spelt_out(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_spelt_out(key): _spelt_out(one) for key, one in value.items()}
    return [_spelt_out(one) for one in value] if isinstance(value, list) else value
