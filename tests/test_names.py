"""File names of images: ids that differ have names that differ, wherever a dataset is copied to."""

import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_commit import make_format, make_shard

from batchgen.dataset.commit import Attempt
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.names import image_name
from batchgen.errors import AlreadyExists
from batchgen.options import ImageFormat
from batchgen.storage import open_store

DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
NEAR = (
    str.upper, str.lower, str.swapcase, str.casefold, lambda id_: unicodedata.normalize("NFC", id_),
    lambda id_: unicodedata.normalize("NFD", id_), lambda id_: unicodedata.normalize("NFKC", id_),
    lambda id_: f"{id_}.", lambda id_: f"{id_} ", lambda id_: re.sub("[^A-Za-z0-9]", "-", id_), lambda id_: id_[:60],
    lambda id_: name_of(id_).removesuffix(".png"), lambda id_: f"{id_}.step-001", lambda id_: f"{id_}-0",
)  # fmt: skip
IDS = st.one_of(
    st.text(max_size=200),
    st.text("aA-_.0é/ß", max_size=6),
    st.sampled_from(sorted(DEVICES)),
    st.from_regex(r"[a-z0-9-]{0,3}--[0-9a-f]{32}", fullmatch=True),
)
PAIRS = st.tuples(IDS, st.one_of(IDS, st.sampled_from(NEAR))).map(
    lambda pair: (pair[0], pair[1](pair[0]) if callable(pair[1]) else pair[1])
)


def name_of(id_: str, step: int | None = None) -> str:
    return image_name(id_, ImageFormat.PNG, "" if step is None else f".step-{step:03d}")


def as_copied(name: str) -> str:
    """What a name is to a file system that tells neither case nor normal forms apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@settings(max_examples=400)
@given(PAIRS)
@example(("a/b", "a-b--c14cddc033f64b9dea80ea675cf280a0"))
@example(("a", "A"))
@example(("é", "e\u0301"))
@example(("ß", "ss"))
@example(("\ud800", "\udfff"))
def test_ids_that_differ_have_names_that_differ(pair: tuple[str, str]) -> None:
    """Incident: "a/b" and the id that its escaped name is were one file; one of the two images was lost, exit 0."""
    names = {as_copied(name_of(id_, step)) for id_ in pair for step in (None, 1)}
    assert len(names) == 2 * len(set(pair))


@settings(max_examples=200)
@given(IDS)
def test_a_name_can_be_copied_everywhere(id_: str) -> None:
    """Letters, digits, dashes and dots; no device of Windows, no dot or blank at its end, no option of a command."""
    for name in (name_of(id_), name_of(id_, 1)):
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.step-001)?\.png", name)
        assert name.split(".")[0].lower() not in DEVICES and len(name) < 128


@pytest.mark.parametrize("id_", ["row-000", "0123456789abcdef", "0123456789abcdef-1", "a_b-c"])
def test_plain_ids_name_their_files(id_: str) -> None:
    assert name_of(id_) == f"{id_}.png" and name_of(id_, 12) == f"{id_}.step-012.png"


def test_images_of_ids_that_are_nearly_one(tmp_path: Path) -> None:
    """Each has a file of its own; a name that is taken is an error, but not for what lies there already."""
    dataset = Dataset.begin(open_store(str(tmp_path)), make_format(), create=True)
    ids = ["a/b", name_of("a/b").removesuffix(".png"), "a", "A", "a.", "con", "é", "e\u0301"]
    shard = make_shard(rows=len(ids))
    this = Attempt(dataset, shard, "run-1")
    rows = [replace(row, id=id_) for row, id_ in zip(shard.rows, ids, strict=True)]
    for row in rows:
        this.add_image(row, row.id.encode())
        this.add_side_image(row, b"step of " + row.id.encode(), "step-001")
    stored = {path.name: path.read_bytes() for path in tmp_path.glob("data/*/*/*")}
    assert sorted(stored.values()) == sorted(part + id_.encode() for id_ in ids for part in (b"", b"step of "))
    assert len({as_copied(name) for name in stored}) == 2 * len(ids)
    this.add_image(rows[0], rows[0].id.encode())  # as after an answer that was lost
    with pytest.raises(AlreadyExists, match="two rows have one file name"):
        this.add_image(rows[0], b"another image")
