"""The plan and the index: rows are partitioned exactly, shards are homogeneous, and a resumed run cuts as the first."""

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.errors import InputError
from batchgen.generation.parameters import Parameters
from batchgen.generation.tasks import TASKS
from batchgen.identity import canonical, derive_seed, fingerprint, row_id, shard_id
from batchgen.index import Committed, Counts, Index
from batchgen.models.catalog import Model, Source
from batchgen.rows import Row, Shard, Status
from batchgen.sampling import spread
from batchgen.sharding import Sizing, batch_key, key_kind, key_model, make_shards, settle_batches

VALUES: dict[str, Any] = {
    "prompt": "a red cube",
    "prompt_syntax": "plain",
    "negative_prompt": "",
    "seed": 1,
    "width": 64,
    "height": 64,
    "num_inference_steps": 4,
    "guidance_scale": 7.5,
    "guidance_rescale": None,
    "eta": 0.0,
    "clip_skip": None,
    "scheduler": "DDIMScheduler",
    "scheduler_kwargs": {},
    "model": "builtin",
}


def make_row(number: int, task: str = "text-to-image", **values: Any) -> Row:
    applied = {**VALUES, "seed": number, **values}
    parameters = Parameters.from_cells(applied)
    return Row(
        id=f"row-{number}", fingerprint=f"{number:064x}", task=task, parameters=parameters, file="m.csv", number=number
    )


def with_cells(row: Row, **cells: Any) -> Row:
    return replace(row, parameters=Parameters.from_cells({**row.parameters.to_cells(), **cells}))


def make_model(name: str, fingerprint: str) -> Model:
    return Model(
        name=name, source=Source.FOLDER, location=name, fingerprint=fingerprint, width=64, height=64,
        scheduler="DDIMScheduler",
    )  # fmt: skip


def key_of(row: Row) -> str:
    return batch_key(row, make_model(row.parameters.model, f"fingerprint of {row.parameters.model}"))


def fill(index: Index, rows: Sequence[Row]) -> None:
    for row in rows:
        assert index.add(key_of(row), row) is None


def shards_of(index: Index, sizing: Sizing, limit: int | None = None) -> list[Shard]:
    totals = ((group.key, group.total) for group in index.groups())
    return list(make_shards(index.pending(limit), totals, sizing))


varied = st.lists(
    st.fixed_dictionaries(
        {
            "width": st.sampled_from([64, 128, 512]),
            "num_inference_steps": st.sampled_from([2, 30]),
            "guidance_scale": st.sampled_from([1.0, 5.0, 7.5]),
            "model": st.sampled_from(["a", "b"]),
            "prompt": st.text(max_size=5),
        }
    ),
    min_size=1,
    max_size=60,
)
sizings = st.builds(
    Sizing,
    device=st.sampled_from(["cpu", "cuda"]),
    workers=st.integers(1, 5),
    batch_size=st.none() | st.integers(1, 7),
    shard_rows=st.none() | st.integers(1, 20),
)


@settings(max_examples=60, deadline=None)
@given(varied, sizings)
def test_shards_partition_the_rows(cells: list[dict[str, Any]], sizing: Sizing) -> None:
    """Every row is in exactly one shard; shards hold one batch key, whole micro-batches except the key's last."""
    rows = [make_row(number, **values) for number, values in enumerate(cells)]
    with Index() as index:
        fill(index, rows)
        shards = shards_of(index, sizing)
    assert Counter(row.id for shard in shards for row in shard.rows) == Counter(row.id for row in rows)
    assert len({shard.id for shard in shards}) == len(shards)
    last = {shard.key: shard.id for shard in shards}
    for shard in shards:
        assert {key_of(row) for row in shard.rows} == {shard.key}
        assert shard.batch_size == sizing.micro_batch(shard.key)
        assert shard.id == last[shard.key] or len(shard.rows) % shard.batch_size == 0
        batches = shard.micro_batches()
        assert [row.id for batch in batches for row in batch.rows] == [row.id for row in shard.rows]
        assert all(batch.size == shard.batch_size for batch in batches)


@settings(max_examples=60, deadline=None)
@given(varied, sizings)
def test_model_switches_are_rare(cells: list[dict[str, Any]], sizing: Sizing) -> None:
    """Shards of a model, and of a key, follow each other: no model is loaded twice by one worker."""
    with Index() as index:
        fill(index, [make_row(number, **values) for number, values in enumerate(cells)])
        shards = shards_of(index, sizing)
    for keys in ([key_model(shard.key) for shard in shards], [shard.key for shard in shards]):
        switches = sum(a != b for a, b in pairwise(keys))
        assert switches == len(set(keys)) - 1


@settings(max_examples=60, deadline=None)
@given(varied, sizings, st.randoms(use_true_random=False))
def test_resume_cuts_the_rest_as_before(cells: list[dict[str, Any]], sizing: Sizing, chance: random.Random) -> None:
    """After any subset of shards was committed, what is left is cut into exactly the shards that were left."""
    rows = [make_row(number, **values) for number, values in enumerate(cells)]
    with Index() as first:
        fill(first, rows)
        shards = shards_of(first, sizing)
    committed = [shard for shard in shards if chance.random() < 0.5]
    with Index() as second:
        fill(second, rows)
        for shard in committed:
            second.mark(
                Committed(id=row.id, fingerprint=row.fingerprint, shard=shard.id, status=Status.DONE)
                for row in shard.rows
            )
        assert shards_of(second, sizing) == [shard for shard in shards if shard not in committed]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6))
def test_split_ends_and_partitions(count: int, batch_size: int) -> None:
    """Halving keeps every row once, keeps the micro-batch size, and ends with single rows."""
    rows = [make_row(number) for number in range(count)]
    whole = Shard(id="whole", key=key_of(rows[0]), batch_size=batch_size, rows=tuple(rows))
    todo, single = [whole], []
    while todo:
        shard = todo.pop()
        parts = shard.split()
        if not parts:
            single.append(shard)
            continue
        assert [row.id for part in parts for row in part.rows] == [row.id for row in shard.rows]
        assert all(len(part.rows) < len(shard.rows) and part.batch_size == batch_size for part in parts)
        todo += parts
    assert sorted(shard.rows[0].id for shard in single) == sorted(row.id for row in rows)
    assert all(len(shard.rows) == 1 for shard in single)


def test_micro_batch_depends_on_key_and_device_alone() -> None:
    """The promise of equal bytes for any shard size, worker count or rest of a manifest stands on this."""
    keys = [key_of(make_row(0, width=width)) for width in (64, 128, 512, 1024)]
    for device in ("cpu", "cuda"):
        sizes = {
            tuple(Sizing(device=device, workers=workers, shard_rows=rows).micro_batch(key) for key in keys)
            for workers in (1, 3, 64)
            for rows in (None, 16, 64)
        }
        assert len(sizes) == 1
        (found,) = sizes
        assert min(found) >= 1
        assert list(found) == sorted(found, reverse=True)


def test_batch_key_parts() -> None:
    """What a call shares enters the key; what it takes per row (prompt, seed, guidance above 1) does not."""
    base = make_row(0)
    key = key_of(base)
    assert (key_kind(key).width, key_kind(key).height, key_kind(key).steps) == (64, 64, 4)
    for name, value in {
        "prompt": "b",
        "negative_prompt": "c",
        "seed": 9,
        "guidance_scale": 3.0,
        "clip_skip": 2,
    }.items():
        assert key_of(with_cells(base, **{name: value})) == key, name
    for name, value in {
        "width": 128, "height": 128, "num_inference_steps": 5, "guidance_scale": 1.0, "eta": 0.5,
        "scheduler": "PNDMScheduler", "scheduler_kwargs": {"steps_offset": 1}, "model": "other",
        "guidance_rescale": 0.3,
    }.items():  # fmt: skip
        assert key_of(with_cells(base, **{name: value})) != key, name
    assert batch_key(base, make_model("builtin", "another fingerprint")) != key


def test_strengths_that_denoise_the_same_steps_share_a_batch() -> None:
    """Image-to-image: the number of steps that run is shared, not the strength; full noise stands apart."""
    keys = {
        strength: key_of(make_row(0, task="image-to-image", strength=strength, num_inference_steps=10))
        for strength in (0.8, 0.85, 0.9, 1.0)
    }
    assert keys[0.8] == keys[0.85]
    assert len(set(keys.values())) == 3
    assert TASKS["image-to-image"].key(make_row(0, strength=0.0, num_inference_steps=10).parameters) == (0, False)


BASE = {name: value for name, value in VALUES.items() if name != "model" and value is not None}


@pytest.mark.parametrize("name", sorted(BASE))
def test_fingerprint_covers_every_value(name: str) -> None:
    """Whatever decides the pixels decides the fingerprint; an edited row is made again."""
    value = BASE[name]
    other: Any = {"a": 1} if isinstance(value, dict) else value + ("x" if isinstance(value, str) else 1)
    assert fingerprint("t", {**BASE, name: other}, "m", {}) != fingerprint("t", BASE, "m", {})


def test_fingerprint_covers_task_model_and_inputs() -> None:
    """Model and images count by their bytes, not by name; the order of columns does not matter."""
    prints = [
        fingerprint("t", BASE, "m", {}),
        fingerprint("u", BASE, "m", {}),
        fingerprint("t", BASE, "n", {}),
        fingerprint("t", BASE, "m", {"image": "a"}),
        fingerprint("t", BASE, "m", {"image": "b"}),
        fingerprint("t", BASE, "m", {"mask_image": "a"}),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint("t", dict(reversed(BASE.items())), "m", {}) == prints[0]
    assert len(prints[0]) == 64


def test_fingerprint_is_frozen() -> None:
    """A change of this value makes every image of every output again: raise identity.VERSION with it, knowingly."""
    expected = "c20332811de9d83d61d173075c6c808f4d7c5c9912a6e2efa3351a7c424cc844"
    assert fingerprint("text-to-image", {"prompt": "a", "seed": 1}, "m", {"image": "x"}) == expected


def test_names_and_seeds() -> None:
    """Seeds fit 32 bits and differ by occurrence; equal rows get their own ids; shard names follow rows and order."""
    seeds = [derive_seed("content", occurrence) for occurrence in range(100)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert row_id("ab" * 32) == "ab" * 8
    assert row_id("ab" * 32, 2) == "ab" * 8 + "-2"
    assert shard_id([("a", "1"), ("b", "2")]) != shard_id([("b", "2"), ("a", "1")])
    assert shard_id([("a", "1")]) != shard_id([("a1", "")])
    with pytest.raises(ValueError, match="JSON"):
        canonical({"x": float("nan")})


def test_index_refuses_a_second_row_of_an_id() -> None:
    """The holder's place comes back, so that both can be named."""
    with Index() as index:
        assert index.add("k", make_row(1)) is None
        assert index.add("k", replace(make_row(2), id="row-1")) == ("m.csv", 1)
        assert index.counts().total == 1


def test_index_hands_out_by_key_then_in_order() -> None:
    """Pending rows come grouped by key, each group in the manifest's order, whatever order they were added in."""
    with Index() as index:
        for number, key in enumerate(["b", "a", "b", "a", "c"]):
            index.add(key, make_row(number))
        assert [(key, row.number) for key, row in index.pending()] == [("a", 1), ("a", 3), ("b", 0), ("b", 2), ("c", 4)]
        assert [row.number for _, row in index.pending(3)] == [1, 3, 0]
        assert [(group.key, group.total, group.pending) for group in index.groups()] == [
            ("a", 2, 2), ("b", 2, 2), ("c", 1, 1),
        ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["same", "edited"]), st.sampled_from(Status))))
def test_counts_add_up(known: list[tuple[int, str, Status]]) -> None:
    """done + failed + pending = total, whatever the output holds, and done wins over failed."""
    with Index() as index:
        fill(index, [make_row(number) for number in range(8)])
        for number, print_, status in known:
            fingerprint_ = f"{number:064x}" if print_ == "same" else "old"
            index.mark([Committed(id=f"row-{number}", fingerprint=fingerprint_, shard="s", status=status)])
        counts = index.counts()
        done = {number for number, print_, status in known if number < 8 and print_ == "same" and status is Status.DONE}
        tried = {number for number, print_, _ in known if number < 8 and print_ == "same"}
        assert counts == Counts(total=8, done=len(done), failed=len(tried - done), pending=8 - len(tried))
        assert [row.number for _, row in index.pending()] == sorted(set(range(8)) - tried)
        assert sum(group.pending for group in index.groups()) == counts.pending


def test_superseded_once_the_new_one_is_done() -> None:
    """An edited row's old image is dropped only when the new one is there, and never because the new one failed."""
    with Index() as index:
        fill(index, [make_row(number) for number in range(3)])
        old = [Committed(id=f"row-{n}", fingerprint="old", shard=f"shard-{n}", status=Status.DONE) for n in range(3)]
        index.mark(old)
        assert list(index.superseded()) == []
        index.mark([Committed(id="row-0", fingerprint=f"{0:064x}", shard="new", status=Status.DONE)])
        index.mark([Committed(id="row-1", fingerprint=f"{1:064x}", shard="new", status=Status.FAILED)])
        assert list(index.superseded()) == old[:1]
        assert index.images() == 4


def test_plan_is_pure() -> None:
    """DESIGN: plan is pure data and imports neither Ray, torch nor fsspec; nor does what it needs."""
    script = "import sys, batchgen.sharding; print(*{m.split('.')[0] for m in sys.modules})"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ray", "torch", "fsspec", "s3fs", "diffusers", "pyarrow", "click"} & set(found)


def test_a_gpu_pads_little_where_keys_have_few_rows() -> None:
    """Incident: 96 rows in 4 keys were 4 calls of 64, 256 images for 96."""
    keys = [key_of(make_row(0, num_inference_steps=steps)) for steps in (2, 3, 4, 5)]
    settled = settle_batches(((key, 24) for key in keys), "cuda", {})
    sizing = Sizing(device="cuda", workers=1, batches=settled or {})
    assert [sizing.micro_batch(key) for key in keys] == [24] * 4
    for rows in range(1, 400):
        (size,) = (settle_batches([(keys[0], rows)], "cuda", {}) or {}).values()
        padded = -(-rows // size) * size - rows
        assert size <= 64 and (padded <= rows * 0.1)


def test_sizes_of_calls_stay_as_an_output_met_them() -> None:
    """Rows that are appended, an output that was begun before, and a CPU change none."""
    key, other = (key_of(make_row(0, num_inference_steps=steps)) for steps in (2, 3))
    first = settle_batches([(key, 5)], "cuda", {})
    later = settle_batches([(key, 500), (other, 500)], "cuda", first)
    assert first is not None and later is not None
    assert later.items() > first.items()
    assert settle_batches([(key, 5)], "cuda", None) is None
    assert settle_batches([(key, 5)], "cpu", {}) == {}


def test_a_sample_shows_every_value_alike_and_is_the_same_each_time() -> None:
    """8 of 400 rows over two colors, four scales and fifty seeds: each color four times, each scale twice."""
    rows = [
        replace(make_row(number), carried={"axis_color": color, "axis_scale": scale})
        for number, (color, scale) in enumerate(product(["red", "green"], [1, 3, 5, 7] * 50))
    ]
    chosen = spread(rows, 8)
    assert chosen == spread(rows, 8)
    cells = [row.carried for row in rows if row.id in set(chosen)]
    assert Counter(cell["axis_color"] for cell in cells) == {"red": 4, "green": 4}
    assert Counter(cell["axis_scale"] for cell in cells) == {1: 2, 3: 2, 5: 2, 7: 2}
    assert len(spread(rows, 1000)) == len(set(spread(rows, 1000))) == 400
    with pytest.raises(InputError, match="no row has such a column"):
        spread(rows, 2, ["colour"])


@pytest.mark.parametrize("by", [["scheduler"], ["sampler"], []])
def test_a_sample_tells_samplers_of_one_class_apart(by: list[str]) -> None:
    """By their names, as the manifest has them."""
    rows = [replace(make_row(number), sampler="DPM++ 2M Karras" if number == 7 else "DPM++ 2M") for number in range(9)]
    assert "row-7" in spread(rows, 2, by)


def test_rows_beside_a_sample_are_left_for_later() -> None:
    with Index() as index:
        for number in range(10):
            row = make_row(number)
            index.add(key_of(row), row)
        chosen = spread(index.candidates(100), 3)
        assert index.defer_all_but(chosen) == 3
        assert {row.id for _, row in index.pending()} == set(chosen)
        assert sum(rows for _, rows in index.shares()) == 3
        assert index.counts().pending == 10
