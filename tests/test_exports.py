"""Benchmarks: published lists through an export as the evaluator reads it, and its results back on their rows."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import RunCli, WriteManifest
from PIL import Image
from test_plan import key_of
from test_scores import pixels_of

from batchgen import open_dataset
from batchgen.dataset.commit import Attempt
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.format import new_format
from batchgen.dataset.schema import applied_cells
from batchgen.driver import resolved_rows
from batchgen.errors import InputError
from batchgen.exports import export
from batchgen.images import encode
from batchgen.job import load_job
from batchgen.options import ImageFormat, Layout
from batchgen.rows import Shard
from batchgen.scoring.reference import Reference
from batchgen.scoring.results import join_results
from batchgen.scoring.selection import select
from batchgen.storage import open_store

PUBLISHED = [  # lines of GenEval's list, one of each kind
    '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}',
    '{"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], '
    '"prompt": "a photo of two clocks"}',
    '{"tag": "position", "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": '
    '["right of", 0]}], "prompt": "a photo of a dog right of a teddy bear"}',
    '{"tag": "color_attr", "include": [{"class": "wine glass", "count": 1, "color": "purple"}, {"class": "apple", '
    '"count": 1, "color": "black"}], "prompt": "a photo of a purple wine glass and a black apple"}',
]


def make_output(folder: Path, manifest: Path, layout: Layout = Layout.FILES, *, form: str = "png") -> Dataset:
    """An output of two images a row of a manifest, as its workers would commit them."""
    job = load_job(str(manifest), layout=layout, format=form, defaults={"num_images_per_prompt": 2})
    with resolved_rows(job) as (index, resolved):
        wanted = new_format(job.layout, job.format, resolved.carried)
        rows = [row for _, row in index.pending(None)]
    dataset = Dataset.begin(open_store(str(folder)), wanted, create=True)
    this, done = Attempt(dataset, Shard(id="0" * 16, key=key_of(rows[0]), batch_size=1, rows=tuple(rows)), "run-1"), []
    for number, row in enumerate(rows):
        data = encode(pixels_of(number), job.format)
        made: dict[str, Any] = {
            "id": row.id,
            "fingerprint": row.fingerprint,
            "status": "done",
            "width": 64,
            "height": 64,
        }
        done.append({**row.carried, **applied_cells(row), **made, **this.add_image(row, data)})
    this.commit(done, [], size=1, seconds=1.0, device="test")
    return dataset


def evaluated(folder: Path) -> list[dict[str, Any]]:
    """What GenEval's evaluator says of a folder, walked as it walks, but for what is in the images."""
    found = []
    for place in folder.iterdir():
        if not place.is_dir() or not place.name.isdigit():
            continue
        metadata = json.loads((place / "metadata.jsonl").read_text())
        for sample in (place / "samples").iterdir():
            assert re.fullmatch(r"\d+\.png", sample.name)
            assert Image.open(sample).format == "PNG"
            wanted = [part["color"] for part in metadata["include"] if "color" in part]  # as it asks: absent, not null
            correct, reason = metadata["tag"] != "counting", "expected clock<3, found 4"
            said = {"tag": metadata["tag"], "prompt": metadata["prompt"], "metadata": json.dumps(metadata)}
            details = json.dumps({"colors": wanted})
            found.append({"filename": str(sample), **said, "correct": correct, "reason": reason, "details": details})
    return found


@pytest.mark.parametrize(("layout", "form"), [(Layout.FILES, "png"), (Layout.PARQUET, "webp")])
def test_geneval_there_and_back(layout: Layout, form: str, tmp_path: Path) -> None:
    """The list as it was published; every metadata as published; results by row, where report and pandas see them."""
    manifest = tmp_path / "evaluation_metadata.jsonl"
    manifest.write_text("\n".join(PUBLISHED) + "\n")
    dataset = make_output(tmp_path / "out", manifest, layout, form=form)
    done = export(dataset.uri, "geneval", str(tmp_path / "geneval"))
    assert (done.images, done.prompts) == (8, 4)
    texts = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("geneval/*/metadata.jsonl")}
    assert sorted(texts) == ["00000", "00001", "00002", "00003"]
    for line in PUBLISHED:
        assert json.loads(line) in texts.values()
    with pytest.raises(InputError, match="is not empty"):
        export(dataset.uri, "geneval", str(tmp_path / "geneval"))

    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(result) + "\n" for result in evaluated(tmp_path / "geneval")))
    with pytest.raises(InputError, match="--exported"):
        join_results(dataset.uri, str(results))
    joined = join_results(dataset.uri, str(results), name="geneval", exported=str(tmp_path / "geneval"))
    assert (joined.joined, joined.unknown) == (8, 0)
    assert joined.columns == [f"geneval_{name}" for name in ("metadata", "correct", "reason", "details")]
    frame = open_dataset(dataset.uri).to_pandas(["tag"], scores=True)
    assert (frame["geneval_correct"] == (frame["tag"] != "counting")).all()
    assert set(frame.loc[frame["tag"] == "color_attr", "geneval_details"]) == {'{"colors": ["purple", "black"]}'}
    assert select(dataset.uri, "geneval_correct == 0", str(tmp_path / "wrong.parquet")).selected == 2


@pytest.mark.parametrize("name", ["results.csv", "results.parquet"])
def test_results_by_id(name: str, tmp_path: Path, write_manifest: WriteManifest) -> None:
    """Numbers stay numbers in text, too; what belongs to no row is counted, and nothing else is refused."""
    manifest = write_manifest("prompts.jsonl", [{"id": f"row-{n}", "prompt": f"a cube {n}"} for n in range(3)])
    dataset = make_output(tmp_path / "out", manifest)
    ids = dataset.to_table(["id"])["id"].to_pylist()
    rows = [{"id": id_, "score": number / 4, "verdict": "yes", "prompt": "?"} for number, id_ in enumerate(ids[:4])]
    results = write_manifest(name, [*rows, {"id": "gone", "score": 9.0, "verdict": "no", "prompt": "?"}])
    joined = join_results(dataset.uri, str(results), name="judge")
    assert (joined.joined, joined.unknown, joined.columns) == (4, 1, ["judge_score", "judge_verdict"])
    table = dataset.to_table(["id"], scores=True)
    assert table.schema.names == ["id", "judge_score", "judge_verdict", "judge_error"]
    assert table.schema.field("judge_score").type == pa.float64()
    assert dict(zip(ids, table["judge_score"].to_pylist(), strict=True)) == {
        id_: number / 4 if number < 4 else None for number, id_ in enumerate(ids)
    }
    for others, words in (
        ([{"id": "gone", "score": 1.0}], "none of its 1 results"),
        ([{"id": ids[0], "score": 1.0}, {"id": ids[0], "score": 2.0}], "a second result"),
        ([{"name": "x", "score": 1.0}], "has no id"),
        ([{"id": ids[0], "prompt": "?"}], "no column but"),
    ):
        with pytest.raises(InputError, match=words):
            join_results(dataset.uri, str(write_manifest(f"other-{name}", others)), name="judge")
    with pytest.raises(InputError, match="is a metric"):
        join_results(dataset.uri, str(results), name="kid")
    assert dataset.to_table(["id"], scores=True) == table


def test_an_export_wants_what_the_evaluator_reads(
    tmp_path: Path, batchgen: RunCli, write_manifest: WriteManifest
) -> None:
    make_output(tmp_path / "out", write_manifest("prompts.jsonl", [{"prompt": "a cube"}]))
    done = batchgen("export", tmp_path / "out", "--to", "geneval", "--output", tmp_path / "geneval")
    assert done.returncode == 2 and "evaluation_metadata.jsonl" in done.stderr
    assert not (tmp_path / "geneval").exists()


@pytest.mark.s3
def test_a_bucket_takes_exports_and_holds_real_images(tmp_path: Path, s3_bucket: str) -> None:
    """An export into a prefix, which is no place for a second one; as real images another set once one changes."""
    manifest = tmp_path / "evaluation_metadata.jsonl"
    manifest.write_text("\n".join(PUBLISHED) + "\n")
    dataset = make_output(tmp_path / "out", manifest)
    place = f"{s3_bucket}/benchmarks/geneval"
    export(dataset.uri, "geneval", place)
    with pytest.raises(InputError, match="is not empty"):
        export(dataset.uri, "geneval", place)
    first, again = Reference.open(place), Reference.open(place)
    assert len(first.names) == 8 and first == replace(again, store=first.store)
    same = encode(pixels_of(0), ImageFormat.PNG)
    open_store(place).write("00000/samples/00000.png", same[:-1] + b"!")
    assert Reference.open(place).fingerprint != first.fingerprint
    ids = dataset.to_table(["id"])["id"].to_pylist()
    results = tmp_path / "results.csv"
    samples = [f"geneval/0000{n // 2}/samples/0000{n % 2}.png" for n in range(8)]
    results.write_text("filename,score\n" + "".join(f"{name},{n}\n" for n, name in enumerate(samples)))
    assert join_results(dataset.uri, str(results), exported=place).joined == len(ids) == 8
