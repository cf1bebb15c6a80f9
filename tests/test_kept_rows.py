"""Rows that an earlier run resolved: taken as they were while nothing changed, and not at all otherwise."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import HERE, RunCli, write_model_configs
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file
from test_parameters import rows

from batchgen.dataset.kept import PLANS, keep_resolved, take_resolved
from batchgen.driver import resolved_rows
from batchgen.index import Index
from batchgen.job import Job
from batchgen.manifest.problems import ProblemLog
from batchgen.reading import look_at_input
from batchgen.resolve import Resolved, resolve
from batchgen.rows import Row, decode_row, encode_row
from batchgen.storage import Store, open_store

YESTERDAY = time.time() - 86400


@pytest.mark.slow
@given(rows(), st.dictionaries(st.text(), st.binary() | st.dates()))
def test_a_row_comes_back_as_it_was(row: Row, carried: Mapping[str, Any]) -> None:
    """Tuples stay tuples, numbers keep their bits; carried cells go beside, in Arrow's types."""
    row = replace(row, carried=carried)
    again = decode_row(encode_row(row), carried)
    assert again == row
    assert repr(again) == repr(row)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A manifest with init images and carried cells of many types; all of it old."""
    model = write_model_configs(tmp_path / "model")
    for number in range(3):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"{number}.png")
    table = pa.table(
        {
            "id": [f"r{number}" for number in range(5)],
            "prompt": [f"a {{red|blue}} castle {number}" for number in range(5)],
            "image": ["0.png", "1.png", "2.png", None, "0.png"],
            "guidance_scale": [7.1, 0.1, 3.0, None, 1e-7],
            "when": pa.array(
                [datetime(2026, 11, number + 1, tzinfo=UTC) for number in range(5)], pa.timestamp("us", "UTC")
            ),
            "raw": [b"\x00\xff", None, b"", b"a", b"b"],
            "tags": [["a"], [], None, ["b", "c"], ["d"]],
            "score": pa.array([1, 2, None, 4, 5], pa.int8()),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    for file in [*tmp_path.rglob("*")]:
        os.utime(file, (YESTERDAY, YESTERDAY))
    return Job(manifest=str(tmp_path / "rows.parquet"), model=str(model), output=str(tmp_path / "out"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


@contextmanager
def resolving(job: Job) -> Iterator[tuple[Index, Resolved]]:
    with Index() as index:
        problems = ProblemLog()
        yield index, resolve(job, index, problems)
        assert not problems.total


def keep(store: Store, job: Job) -> tuple[list[tuple[str, Row]], Resolved]:
    with resolving(job) as (index, resolved):
        keep_resolved(store, job, index, resolved, before=time.time())
        return list(index.rows()), resolved


def take(store: Store, job: Job) -> tuple[list[tuple[str, Row]], Resolved | None]:
    with Index() as index:
        found = take_resolved(store, job, index)
        return list(index.rows()), found


def test_what_was_kept_is_what_was_resolved(job: Job, store: Store) -> None:
    """Batch keys, rows with every value and type, carried types, models, notices."""
    rows, resolved = keep(store, job)
    assert len(rows) == 5
    assert any("5 rows hold {a|b}" in line for line in resolved.notices)
    taken, found = take(store, job)
    assert taken == rows
    assert found == replace(resolved, kept=True)


def _write_again(file: Path) -> Path:
    file.write_bytes(file.read_bytes())
    return file


def _with(job: Job, changed: object) -> Job:
    """The job, after what was changed."""
    del changed
    return job


CHANGES: Mapping[str, Callable[[Job, Path], Job]] = {
    "an image, of the same size": lambda job, root: _with(job, _write_again(root / "1.png")),
    "the manifest": lambda job, root: _with(job, _write_again(root / "rows.parquet")),
    "a default of the job": lambda job, _: replace(job, defaults={"num_inference_steps": 7}),
    "the model": lambda job, root: _with(job, (root / "model/unet/config.json").write_text('{"sample_size": 8}')),
    "another model": lambda job, root: replace(job, model=str(write_model_configs(root / "other", side=128))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_resolved_again(change: str, job: Job, store: Store, tmp_path: Path) -> None:
    keep(store, job)
    assert take(store, job)[1] is not None
    assert take(store, CHANGES[change](job, tmp_path)) == ([], None)


def test_an_image_that_is_gone_is_said_by_resolving(job: Job, store: Store, tmp_path: Path) -> None:
    keep(store, job)
    (tmp_path / "2.png").unlink()
    assert take(store, job) == ([], None)


@pytest.mark.parametrize("damage", ["truncated part", "missing part", "other record", "no JSON", "foreign rows"])
def test_a_damaged_plan_counts_for_nothing(damage: str, job: Job, store: Store, tmp_path: Path) -> None:
    keep(store, job)
    part, record = sorted((tmp_path / "out" / PLANS).iterdir())
    match damage:
        case "truncated part":
            part.write_bytes(part.read_bytes()[:-100])
        case "missing part":
            part.unlink()
        case "other record":
            record.write_text("{}")
        case "no JSON":
            record.write_bytes(b"\xff")
        case _:
            pq.write_table(pa.table({"key": ["k"], "row": ['{"id": "x"}']}), part)
    assert take(store, job) == ([], None)


def test_what_may_have_changed_meanwhile_is_not_kept(job: Job, store: Store, tmp_path: Path) -> None:
    """A file written while it was resolved may have been read before or after."""
    _write_again(tmp_path / "0.png")
    keep(store, job)
    assert store.names(PLANS) == []


def test_an_older_plan_makes_room(job: Job, store: Store) -> None:
    keep(store, job)
    keep(store, replace(job, defaults={"num_inference_steps": 7}))
    assert len(store.names(PLANS)) == 2  # rows and record
    assert take(store, job)[1] is None
    keep(store, job)
    assert take(store, job)[1] is not None


def test_a_plan_that_no_longer_counts_is_replaced(job: Job, store: Store, tmp_path: Path) -> None:
    """Incident: an image with a new modification time made every further start as slow as the first."""
    keep(store, job)
    _write_again(tmp_path / "1.png")
    os.utime(tmp_path / "1.png", (YESTERDAY, YESTERDAY + 1))
    assert take(store, job)[1] is None
    keep(store, job)
    assert take(store, job)[1] is not None


@pytest.mark.parametrize("change", ["the same times, other bytes", "a link turned elsewhere"])
def test_a_changed_adapter_is_found_again(change: str, job: Job, store: Store, tmp_path: Path) -> None:
    """Incident: a link to a LoRA was turned to another version, and the rest of the rows were made with the old one."""
    for version in (1, 2):
        save_file({"emb_params": np.full((1, 8), version, np.float32)}, tmp_path / f"v{version}.safetensors")
    (tmp_path / "now.safetensors").symlink_to("v1.safetensors")
    table = pq.read_table(tmp_path / "rows.parquet")
    named = [json.dumps({"path": "now.safetensors", "token": "castle"})] * len(table)
    pq.write_table(table.append_column("embeddings", pa.array(named)), tmp_path / "rows.parquet")
    config = {"num_hidden_layers": 3, "hidden_size": 8}
    (tmp_path / "model" / "text_encoder" / "config.json").write_text(json.dumps(config))
    for file in tmp_path.rglob("*"):
        os.utime(file, (YESTERDAY, YESTERDAY))
    rows, _ = keep(store, job)
    assert take(store, job)[0] == rows
    if change.startswith("a link"):
        (tmp_path / "now.safetensors").unlink()
        (tmp_path / "now.safetensors").symlink_to("v2.safetensors")
    else:
        (tmp_path / "v1.safetensors").write_bytes((tmp_path / "v2.safetensors").read_bytes())
        os.utime(tmp_path / "v1.safetensors", (YESTERDAY, YESTERDAY))
    assert take(store, job)[1] is None


def test_large_carried_cells_are_not_stored_twice(job: Job, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Incident: thumbnails carried along took five times their size of the driver's memory, and the disk again."""
    keep(store, job)
    assert len(store.names(PLANS)) == 2
    monkeypatch.setattr("batchgen.dataset.kept.PART_BYTES", 0)
    keep(store, job)
    rows, _ = take(store, job)
    assert len(store.names(PLANS)) > 2 and len(rows) == 5
    monkeypatch.setattr("batchgen.dataset.kept.MOST_BYTES", 100)
    with resolving(job) as (index, resolved):
        why = keep_resolved(store, job, index, resolved, before=time.time())
        assert why is not None and "more than 0 MiB" in why
        monkeypatch.setattr("batchgen.dataset.kept.MOST_LOOKS", 1)
        remote = replace(resolved, read={"s3://bucket/a.png", "s3://bucket/b.png"})
        why = keep_resolved(store, job, index, remote, before=time.time())
        assert why is not None and why.startswith("2 files")
    assert store.names(PLANS) == []


def test_resuming_decodes_no_image_again_unless_it_changed_behind_its_look(
    tiny_model: Path, batchgen: RunCli, tmp_path: Path
) -> None:
    """Incident: 1,000 rows with an init image took 2.6 s of every start; 27 minutes of idle GPUs for a million.

    Other bytes that look as before: the worker sees it, and the next run takes them as they are now.
    """
    image = tmp_path / "init.bmp"  # uncompressed: the size is that of the pixels
    Image.new("RGB", (64, 64), "red").save(image)
    rows = [{"prompt": f"a {n}", "image": "init.bmp", "steps": 2} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file in (image, tmp_path / "rows.jsonl"):
        os.utime(file, (YESTERDAY, YESTERDAY))
    command = ("run", tmp_path / "rows.jsonl", "--output", tmp_path / "out", "--model", tiny_model)
    first = batchgen(*command, "--limit", 2, *HERE)
    assert first.returncode == 0, first.stderr
    job = Job(manifest=str(tmp_path / "rows.jsonl"), model=str(tiny_model), output=str(tmp_path / "out"))
    output = open_store(str(tmp_path / "out"))
    with resolved_rows(job, output) as (index, _):
        kept = list(index.rows())
    with resolved_rows(job) as (index, _):
        assert kept == list(index.rows())
    (record,) = [key for key in output.names(PLANS) if key.endswith(".json")]
    Image.new("RGB", (64, 64), "blue").save(image)
    os.utime(image, (YESTERDAY, YESTERDAY))
    content = json.loads(output.read(f"{PLANS}/{record}"))
    content["read"] = {str(image): asdict(look_at_input(str(image)))}  # as if nothing could be seen
    output.write(f"{PLANS}/{record}", json.dumps(content).encode())
    failed = batchgen(*command, *HERE)
    assert failed.returncode == 1 and "2 of 3 rows done, 1 failed" in failed.stderr, failed.stderr
    assert output.names(PLANS) == []
    again = batchgen(*command, *HERE)
    assert again.returncode == 0, again.stderr
    assert "3 of 3 rows done" in again.stderr
    assert batchgen("verify", tmp_path / "out", "--deep").returncode == 0


@pytest.mark.s3
def test_files_in_a_bucket_are_looked_at_by_their_tags(s3_bucket: str, tmp_path: Path) -> None:
    """The manifest, its image and the output in a bucket; an image that is replaced is seen."""
    inputs, output = open_store(f"{s3_bucket}/in"), open_store(f"{s3_bucket}/out")
    for color in ("red", "blue"):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{color}.png")
    inputs.write("init.png", (tmp_path / "red.png").read_bytes())
    inputs.write("rows.jsonl", json.dumps({"prompt": "a", "image": "init.png"}).encode())
    time.sleep(3)  # what was written this moment is not kept
    model = write_model_configs(tmp_path / "model")
    job = Job(manifest=f"{s3_bucket}/in/rows.jsonl", model=str(model), output=output.uri)
    rows, _ = keep(output, job)
    assert take(output, job)[0] == rows
    inputs.write("init.png", (tmp_path / "blue.png").read_bytes())
    assert take(output, job) == ([], None)
