"""Scores against independent computations, their side tables through changes of the output, and selecting by them."""

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import psutil
import pyarrow.parquet as pq
import pytest
from conftest import BIN, HERE, OFFLINE, RunCli, WriteManifest, workers_below
from PIL import Image
from scipy.ndimage import convolve
from test_commit import make_format, make_shard
from test_kept_outputs import KEPT
from test_plan import with_cells

from batchgen.builtin import companion_path
from batchgen.dataset.commit import Attempt, drop_rows
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.progress import read_receipts
from batchgen.dataset.schema import applied_cells
from batchgen.driver import check, resolved_rows
from batchgen.errors import InputError, ModelLoadError
from batchgen.images import encode
from batchgen.job import load_job
from batchgen.options import ImageFormat, Layout
from batchgen.rows import Shard
from batchgen.scores import ScoringJob, score
from batchgen.scoring.conditions import read_condition
from batchgen.scoring.duplicates import first_alike
from batchgen.scoring.metrics import find_metrics
from batchgen.scoring.models import find_models
from batchgen.scoring.pending import Models
from batchgen.scoring.prompts import plain_prompt
from batchgen.scoring.selection import select
from batchgen.scoring.tables import scores_of
from batchgen.scoring.units import ScoreUnit, ScoringSettings
from batchgen.scoring.worker import ScoringWorker
from batchgen.storage import open_store

COUNT = 100
PROMPTS = ("a red cube", "a blue ring on a table " * 20, "", "(two:1.3) spheres", "a green cone left of a cube")


def pixels_of(number: int, side: int = 64) -> npt.NDArray[np.uint8]:
    """An image with large and small structure, another one for each number."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((side, side))
    noise = random.normal(0, number % 7, (side, side, 3))
    return (np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)


def make_output(folder: Path, count: int, *, rows: int = 25, layout: str = Layout.FILES) -> Dataset:
    """An output of so many images, as its workers would commit them."""
    dataset = Dataset.begin(open_store(str(folder)), make_format(layout), create=True)
    for first in range(0, count, rows):
        shard = make_shard(rows, f"{first:016x}", first)
        commit(dataset, replace(shard, rows=tuple(with_prompt(row) for row in shard.rows)))
    return dataset


def with_prompt(row: Any) -> Any:
    return with_cells(row, prompt=PROMPTS[row.number % len(PROMPTS)], prompt_syntax="a1111")


def commit(dataset: Dataset, shard: Shard) -> None:
    this, done = Attempt(dataset, shard, "run-1"), []
    for row in shard.rows:
        data = encode(pixels_of(row.number), ImageFormat.PNG)
        made = {"id": row.id, "fingerprint": row.fingerprint, "status": "done", "flagged": row.number % 2 == 0}
        size = {"sha256": hashlib.sha256(data).hexdigest(), "width": 64, "height": 64, "device": "test", "seconds": 1.0}
        done.append({**row.carried, **applied_cells(row), **made, **size, **this.add_image(row, data)})
    this.commit(done, [], size=1, seconds=1.0, device="test")


def make_worker(dataset: Dataset, models: Models, *, allow_pickle: bool = False) -> ScoringWorker:
    settings = ScoringSettings(
        store=dataset.uri,
        storage_options={},
        output=dataset.format,
        models=models,
        device="cpu",
        dtype="float32",
        batch_size=16,
        allow_pickle=allow_pickle,
    )
    return ScoringWorker(settings)


def scored(
    dataset: Dataset, *names: str, models: Mapping[str, str] = {}, allow_pickle: bool = False
) -> dict[str, dict[str, Any]]:
    """The scores of an output, by the worker itself in this process."""
    metrics = find_metrics(names)
    worker = make_worker(dataset, find_models(metrics, models, allow_pickle=allow_pickle), allow_pickle=allow_pickle)
    for shard in dataset.shards():
        worker.run(ScoreUnit(shard=shard, rows=25, metrics=tuple(metric.name for metric in metrics)))
    return scores_of(dataset)


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A hundred images in four shards."""
    return make_output(tmp_path_factory.mktemp("hundred") / "out", COUNT)


def column(found: Mapping[str, Mapping[str, Any]], name: str) -> list[Any]:
    return [found[f"row-{number}"][name] for number in range(COUNT)]


# Metrics against independent computations


def test_measures_of_pixels(hundred: Dataset) -> None:
    """Luma by BT.601's integers, Laplacian by a convolution, the hash by a cosine transform written out."""
    found = scored(hundred, "sharpness", "brightness", "contrast", "phash")
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    places = np.arange(32)
    cosines = np.cos(np.pi * np.outer(np.arange(8), 2 * places + 1) / 64)
    for number in range(COUNT):
        red, green, blue = np.moveaxis(pixels_of(number).astype(np.int64), -1, 0)
        luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
        scores = found[f"row-{number}"]
        assert scores["sharpness"] == pytest.approx(convolve(luma, kernel, mode="mirror").var(), abs=1e-4)
        assert scores["brightness"] == pytest.approx(luma.mean() / 255, abs=1e-9)
        assert scores["contrast"] == pytest.approx(luma.std() / 255, abs=1e-9)
        small = np.asarray(Image.fromarray(luma.astype(np.uint8)).resize((32, 32), Image.Resampling.LANCZOS), float)
        low = cosines @ small @ cosines.T
        bits = "".join("1" if value > np.median(low) else "0" for value in low.ravel())
        assert int(scores["phash"], 16) == int(bits, 2)


def preprocessed(number: int) -> Any:
    """What builtin-clip sees of an image, without a processor."""
    import torch

    image = Image.fromarray(pixels_of(number)).resize((128, 128), Image.Resampling.BICUBIC)
    return torch.from_numpy((np.asarray(image) / 255 - 0.5) / 0.5).permute(2, 0, 1).float()


@pytest.mark.slow
def test_likeness_by_clip(hundred: Dataset) -> None:
    """One pass of the whole model for each pair, with its own logits; rows without words have no score."""
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    found = scored(hundred, "clip_score", "pickscore")
    folder = companion_path("builtin-clip")
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    scale = model.logit_scale.exp().item()
    for number in range(COUNT):
        scores = found[f"row-{number}"]
        words = PROMPTS[number % len(PROMPTS)].replace("(two:1.3)", "two")
        assert scores["clip_score_error"] is None
        if not words:
            assert scores["clip_score"] is scores["pickscore"] is None
            continue
        tokens = tokenizer(words)["input_ids"]
        tokens = tokens if len(tokens) <= 77 else [*tokens[:76], tokens[-1]]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens]), pixel_values=preprocessed(number)[None]).logits_per_image
        assert scores["pickscore"] == pytest.approx(logits.item(), abs=1e-4)
        assert scores["clip_score"] == pytest.approx(max(100 * logits.item() / scale, 0), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_aesthetic(suffix: str, hundred: Dataset, tmp_path: Path) -> None:
    """The published perceptron as a Sequential of torch, over the image tower's own output."""
    import torch
    from safetensors.torch import save_file
    from torch import nn
    from transformers import CLIPModel

    torch.manual_seed(0)
    widths = [(128, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]
    linear = [nn.Linear(*sides) for sides in widths]
    head = nn.Module()
    head.layers = nn.Sequential(
        linear[0], nn.Dropout(0.2), linear[1], nn.Dropout(0.2), linear[2], nn.Dropout(0.1), linear[3], linear[4]
    )
    head.eval()
    weights = str(tmp_path / f"head{suffix}")
    (save_file if suffix == ".safetensors" else torch.save)(head.state_dict(), weights)
    models = {"aesthetic": "builtin-clip", "aesthetic.head": weights}
    found = scored(hundred, "aesthetic", models=models, allow_pickle=suffix == ".pth")
    model = CLIPModel.from_pretrained(companion_path("builtin-clip")).eval()
    with torch.no_grad():
        seen = model.get_image_features(torch.stack([preprocessed(number) for number in range(COUNT)])).pooler_output
        wanted = head.layers(seen / seen.norm(dim=-1, keepdim=True))[:, 0]
    assert column(found, "aesthetic") == pytest.approx(wanted.tolist(), abs=1e-4)


@pytest.mark.slow
def test_safety(hundred: Dataset, tmp_path: Path) -> None:
    """The verdicts of diffusers' checker, image by image; without one, the flags of the run."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from tiny_models import build_safety_checker
    from transformers import AutoImageProcessor

    assert column(scored(hundred, "safety"), "unsafe") == [1.0, 0.0] * (COUNT // 2)
    images = [Image.fromarray(pixels_of(number)) for number in range(COUNT)]
    folder = build_safety_checker(tmp_path / "checker", images)
    found = scored(hundred, "safety", models={"safety": str(folder)})
    checker, prepare = StableDiffusionSafetyChecker.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    flags = []
    for image in images:
        with torch.no_grad():
            seen = prepare(image, return_tensors="pt").pixel_values
            flags += checker(images=np.asarray(image)[None] / 255.0, clip_input=seen)[1]
    assert column(found, "unsafe") == [float(flag) for flag in flags]
    assert 20 < sum(flags) < 80
    assert [margin > 0 for margin in column(found, "unsafe_margin")] == flags


@pytest.mark.slow
def test_vqa(hundred: Dataset, tmp_path: Path) -> None:
    """The softmax after one pass of the model over tokens that the test lays out itself."""
    import torch
    from tiny_models import build_llava
    from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration

    folder = build_llava(tmp_path / "llava")
    found = scored(hundred, "vqa_score", models={"vqa_score": str(folder)})
    model, tokenizer = (
        LlavaForConditionalGeneration.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    prepare = AutoImageProcessor.from_pretrained(folder)
    for number in range(COUNT):
        words = PROMPTS[number % len(PROMPTS)].replace("(two:1.3)", "two")
        asked = f'Does this figure show "{words}"? Please answer yes or no.'
        tokens = tokenizer(f"USER: {'<image>' * 16} {asked} ASSISTANT:", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            seen = prepare(Image.fromarray(pixels_of(number)), return_tensors="pt").pixel_values
            logits = model(input_ids=tokens, pixel_values=seen).logits[0, -1]
        wanted = logits.exp()[tokenizer.convert_tokens_to_ids("Yes")] / logits.exp().sum()
        value = found[f"row-{number}"]["vqa_score"]
        assert value is None if not words else value == pytest.approx(wanted.item(), abs=1e-4)


def test_near_duplicates_are_never_further_than_their_group() -> None:
    """Against the definition, hash by hash, on hashes that lie close together; chains join nothing."""
    random = np.random.default_rng(0)
    seeds = random.integers(0, 2**63, 12, dtype=np.uint64)
    hashes = []
    for _ in range(900):
        value = int(random.choice(seeds))
        for bit in random.integers(0, 64, random.integers(0, 7)):
            value ^= 1 << int(bit)
        hashes.append(f"{value:016x}")
    found, heads = first_alike(hashes, near=4), list[int]()
    for place, text in enumerate(hashes):
        far = [(int(text, 16) ^ int(hashes[head], 16)).bit_count() for head in heads]
        if far and min(far) <= 4:
            assert found[place] == heads[far.index(min(far))]
        else:
            assert found[place] == place
            heads.append(place)
    chain = [f"{2**bits - 1:016x}" for bits in (0, 3, 6, 9)]
    assert first_alike(chain, near=4) == [0, 0, 2, 2]


def test_prompts_without_their_syntax() -> None:
    assert plain_prompt({"prompt": "a (red:1.3) [old] cube BREAK night", "prompt_syntax": "a1111"}) == (
        "a red old cube night"
    )
    assert plain_prompt({"prompt": "a (red:1.3) cube", "prompt_syntax": "plain"}) == "a (red:1.3) cube"
    assert plain_prompt({"prompt": " "}) is plain_prompt({}) is None


# Side tables


def stamps(output: Path, metric: str) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in output.glob(f"scores/{metric}/*.parquet")}


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_only_what_changed_is_scored_again(layout: str, tmp_path: Path) -> None:
    """A second run does nothing; a shard that lost a row, a removed one and a repaired image are found."""
    output = tmp_path / "out"
    dataset = make_output(output, 40, rows=10, layout=layout)
    job = ScoringJob(output=str(output), metrics=["sharpness", "duplicates"], workers=0)
    lines: list[str] = []
    first = score(job, lines.append)
    assert (first.rows, first.scored, first.failed) == (40, 40, {})
    assert first.scores["sharpness"].count == first.scores["duplicate_group"].count == 40
    before = stamps(output, "sharpness")
    assert len(before) == 4
    assert score(job, lines.append).scored == 0
    assert stamps(output, "sharpness") == before

    receipts = {receipt.shard: receipt for receipt in read_receipts(dataset, repair=True)}
    lesser, gone = sorted(receipts)[:2]
    drop_rows(dataset, receipts[lesser], {("row-3", f"{3:064x}")})
    place = dataset.layout.marker_key(gone)
    (output / place).unlink()
    if layout == Layout.FILES:
        shutil.rmtree((output / place).parent)
    again = score(job, lines.append)
    assert (again.rows, again.scored) == (29, 9)
    assert stamps(output, "sharpness").keys() == before.keys() - {gone}
    assert {name for name, stamp in stamps(output, "sharpness").items() if stamp != before[name]} == {lesser}
    joined = duckdb.sql(
        f"SELECT * FROM '{output}/{dataset.layout.glob}' JOIN '{output}/scores/sharpness/*.parquet' USING (id) "
        f"JOIN '{output}/scores/duplicates/*.parquet' USING (id)"
    ).fetchall()
    assert len(joined) == 29


@pytest.mark.slow
def test_an_image_that_cannot_be_scored(tmp_path: Path, batchgen: RunCli) -> None:
    """It is a null with its reason; its mates have their scores; once repaired it is scored. A dead end is exit 2."""
    output = tmp_path / "out"
    make_output(output, 20, rows=10)
    (image,) = output.glob("data/*/*/row-3.png")
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    (missing,) = output.glob("data/*/*/row-14.png")
    missing.unlink()
    command = ("score", output, "--metric", "brightness", *HERE, "--json")
    done = batchgen(*command)
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert said["failed"] == {"brightness": 2} and said["scores"]["brightness"]["count"] == 18
    found = scores_of(Dataset.open(open_store(str(output))))
    assert found["row-3"]["brightness"] is None and "truncated" in found["row-3"]["brightness_error"]
    assert "not found" in found["row-14"]["brightness_error"] and found["row-4"]["brightness_error"] is None
    image.write_bytes(whole)
    missing.write_bytes(encode(pixels_of(14), ImageFormat.PNG))
    done = batchgen(*command)
    said = json.loads(done.stdout)
    assert (done.returncode, said["scored"], said["failed"]) == (0, 20, {})
    values = [row["brightness"] for row in scores_of(Dataset.open(open_store(str(output)))).values()]
    summary = said["scores"]["brightness"]
    assert (summary["mean"], summary["min"], summary["max"]) == pytest.approx(
        (np.mean(values), min(values), max(values))
    )


@pytest.mark.ray
@pytest.mark.slow
def test_a_kill_in_the_middle_is_gone_on_from(tmp_path: Path, ray_address: str, batchgen: RunCli) -> None:
    """SIGKILL of the command after the first tables: they stay as they are, and the rest is made."""
    output = tmp_path / "out"
    make_output(output, 24, rows=2)
    command = ["score", str(output), "-k", "clip_score", "-k", "contrast", "--json"]
    killed = [str(BIN / "batchgen"), *command, "--address", ray_address]
    running = subprocess.Popen(killed, env={**os.environ, **OFFLINE}, stderr=subprocess.DEVNULL)
    while len(stamps(output, "contrast")) < 3:
        assert running.poll() is None
        time.sleep(0.005)
    workers = workers_below(os.getpid())  # which started the cluster
    assert workers
    running.kill()
    running.wait()
    psutil.wait_procs(workers, timeout=60)  # Ray ends them
    before = stamps(output, "contrast")
    assert 3 <= len(before) < 12
    done = batchgen(*command, *HERE)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["rows"], said["scores"]["contrast"]["count"]) == (24, 24)
    assert said["scored"] <= 24 - 2 * len(before) + 2  # a kill between two tables of a shard
    assert {name: stamp for name, stamp in stamps(output, "contrast").items() if name in before} == before


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_scores_what_it_made(tmp_path: Path, ray_address: str, batchgen: RunCli) -> None:
    """After the images, by workers like theirs; what is missing of the scores is made by the next run, and no image."""
    (tmp_path / "prompts.csv").write_text("id,prompt\na,a red cube\nb,a blue cone\n")
    (tmp_path / "job.toml").write_text(
        'manifest = "prompts.csv"\noutput = "out"\nworkers = 1\n[defaults]\nsteps = 1\n'
        '[score]\nmetrics = ["brightness", "duplicates"]\n'
    )
    command = ("run", tmp_path / "job.toml", "--json")
    done = batchgen(*command, *HERE)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["done"], said["scores"]["scored"], said["scores"]["scores"]["brightness"]["count"]) == (2, 2, 2)
    assert "2 images" in done.stderr and "shards to score" in done.stderr
    images = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/data/*/*/*.png")}
    shutil.rmtree(tmp_path / "out" / "scores" / "brightness")
    whole = (tmp_path / "job.toml").read_text()
    (tmp_path / "job.toml").write_text(whole + "[worker]\nnum_cpus = 99\n")
    refused = batchgen(*command, "--address", ray_address)
    assert refused.returncode == 4 and "no node" in refused.stderr
    (tmp_path / "job.toml").write_text(whole)
    again = json.loads(batchgen(*command, *HERE).stdout)
    assert (again["scores"]["scored"], again["scores"]["failed"]) == (2, {})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/data/*/*/*.png")} == images


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('metrics = ["clip_scor"]', "did you mean 'clip_score'"),
        ('metrics = ["clip_score"]\nmodels = {clip_score = "nowhere"}', "is no folder here"),
        ('metrics = ["kid"]\nreference = "nowhere"', "holds 0 images"),
        ('metrics = ["sharpness"]\nby = ["prompt"]', "groups images for metrics of sets"),
        ('by = ["prompt"]', "names no metrics"),
        ('metrics = "sharpness"', "list of texts"),
        ('metrics = ["clip_score"]\nmodels = {clip_score = 3}', "wants text"),
        ('metrics = ["sharpness"]\nmetric = 3', "did you mean 'score.metrics'"),
    ],
)
def test_scores_that_a_job_cannot_have_are_said_before_the_night(
    table: str, words: str, tmp_path: Path, write_manifest: WriteManifest
) -> None:
    write_manifest("m.jsonl", [{"prompt": "a red cube"}])
    (tmp_path / "job.toml").write_text(f'manifest = "m.jsonl"\n[score]\n{table}\n')
    with pytest.raises(InputError) as error:
        check(load_job(str(tmp_path / "job.toml")))
    assert words in str(error.value)


def test_a_metric_that_fails_on_every_image_fails_as_a_whole(tmp_path: Path) -> None:
    """Nulls for a thousand rows would look like data."""
    dataset = make_output(tmp_path / "out", 4)
    head = tmp_path / "head.safetensors"
    head.write_bytes(b"no weights")
    with pytest.raises(ModelLoadError, match=r"head.safetensors"):
        scored(dataset, "aesthetic", models={"aesthetic": "builtin-clip", "aesthetic.head": str(head)})
    assert not list(Path(dataset.uri).glob("scores/aesthetic/*"))


# What cannot be done is said before anything starts


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-k", "clip_scor"], "did you mean 'clip_score'"),
        (["-k", "aesthetic"], "--model aesthetic.head=..."),
        (["-k", "vqa_score", "-m", "vqa_score=/nowhere"], "is no folder here"),
        (["-k", "clip_score", "-m", f"clip_score={KEPT / 'model'}"], "has no config.json"),
        (["-k", "clip_score", "-m", "clip_score=builtin-clp"], "builtin-clip"),
        (["-k", "sharpness", "-m", "clip_score=builtin-clip"], "none of these metrics reads a model"),
        (["-k", "clip_score", "-m", "clip_score"], "NAME=MODEL"),
        (["-k", "safety", "-m", f"safety={companion_path('builtin-clip')}"], "StableDiffusionSafetyChecker"),
    ],
)
def test_errors_come_first(arguments: Sequence[str], words: str, batchgen: RunCli) -> None:
    done = batchgen("score", KEPT / "files", *arguments, *HERE)
    assert (done.returncode, done.stdout) == (2, "") and words in done.stderr
    assert not (KEPT / "files" / "scores").exists()


# Selecting


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a > 2", [3]),
        ("2 >= a", [1, 2]),
        ("1 < a <= 3 and not s == 'x'", [2]),
        ("a != 1 or s == 'x'", [1, 2, 3]),
        ("a is None", [None]),
        ("a is not None and s in ('y', 'z')", [2]),
        ("s not in ['x']", [2]),
        ("a == b", [1]),
        ("a > -1.5 and (b < 0 or f)", [3]),
        ("not f", [1, 2]),
    ],
)
def test_conditions(text: str, wanted: list[int | None]) -> None:
    import pyarrow as pa

    table = pa.table(
        {"a": [1, 2, 3, None], "b": [1.0, 5.0, -3.0, 0.0], "s": ["x", "y", "x", None], "f": [False, False, True, None]}
    )
    assert table.filter(read_condition(text, table.schema.names))["a"].to_pylist() == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = 3", "=="),
        ("__import__('os').system('true')", "is no comparison"),
        ("a.real > 3", "are no columns"),
        ("a > 3 + 4", "is no text and no number"),
        ("1 < 2", "are no columns"),
        ("clip_score > 3", "batchgen score --metric clip_score"),
        ("aa > 3", "but 'a'"),
        ("a > 3 and", "invalid syntax"),
        ("(" * 300 + "a" + ")" * 300 + " > 1", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_conditions_that_are_none(text: str, words: str) -> None:
    with pytest.raises(InputError, match="--where") as error:
        read_condition(text, ["a"])
    assert words in str(error.value)


def test_what_is_selected_is_a_manifest_of_the_same_images(tmp_path: Path) -> None:
    """Rows of a kept output, init image and all: the same fingerprints under the same ids, scores carried along."""
    kept = Path(shutil.copytree(KEPT, tmp_path / "kept"))
    dataset = Dataset.open(open_store(str(kept / "files")))
    scored(dataset, "brightness", "phash")
    manifest = tmp_path / "views" / "bright.parquet"
    image = pq.read_table(next(kept.glob("files/data/*/metadata.parquet")))
    found = select(str(kept / "files"), "brightness >= 0 and seed >= 0", str(manifest))
    assert (found.selected, found.rows) == (5, 5)
    table = pq.read_table(manifest)
    assert {"brightness", "phash", "label"} <= set(table.schema.names)
    assert image.schema.field("label").type == table.schema.field("label").type
    wanted = {row.cells["id"]: row.cells["fingerprint"] for row in dataset.rows()}
    moved = table.to_pandas()  # the fixture's model and init image were elsewhere when the output was made
    moved["model"] = str(kept / "model")
    moved["image"] = moved["image"].where(moved["image"].isna(), str(kept / "init.png"))
    moved.to_parquet(manifest)
    with resolved_rows(load_job(str(manifest), inputs={"roots": [str(kept)]})) as (index, _resolved):
        resolved = {row.id: row.fingerprint for _key, row in index.pending(None)}
    assert resolved == wanted
    edited = manifest.read_bytes()
    with pytest.raises(InputError, match="was not written so"):
        select(str(kept / "files"), "brightness > 2", str(manifest))
    assert manifest.read_bytes() == edited
    for where, count in (("brightness <= 2", 5), ("brightness > 2", 0)):  # the second replaces the first
        assert select(str(kept / "files"), where, str(tmp_path / "again.parquet")).selected == count
    with pytest.raises(InputError, match="does not fit"):
        select(str(kept / "files"), "prompt > 2", str(tmp_path / "again.parquet"))
