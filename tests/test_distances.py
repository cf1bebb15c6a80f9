"""Distances to real images: against plain formulas, group by group, through changes of images, groups and folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from conftest import HERE, RunCli
from PIL import Image
from scipy.linalg import sqrtm
from test_scores import make_output, make_worker, pixels_of, scored, stamps

from batchgen.builtin import companion_path
from batchgen.dataset.commit import drop_rows
from batchgen.dataset.progress import read_receipts
from batchgen.scores import ScoringJob, score
from batchgen.scoring.groups import Group, read_groups, read_table
from batchgen.scoring.metrics import find_metrics
from batchgen.scoring.models import find_models
from batchgen.scoring.pending import reference_units, score_units, sets_units
from batchgen.scoring.units import ScoreUnit
from batchgen.scoring.worker import ScoringWorker

Features = npt.NDArray[np.float64]


def frechet(real: Features, made: Features) -> float:
    """Heusel et al. 2017, equation 6."""
    apart = real.mean(axis=0) - made.mean(axis=0)
    one, other = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    return float(apart @ apart + np.trace(one + other - 2 * sqrtm(one @ other).real))


def discrepancy(real: Features, made: Features) -> float:
    """Bińkowski et al. 2018, equation 4: the unbiased estimate, pair by pair."""

    def kernel(x: Features, y: Features) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    def within(of: Features) -> float:
        pairs = [kernel(x, y) for i, x in enumerate(of) for j, y in enumerate(of) if i != j]
        return sum(pairs) / len(pairs)

    between = [kernel(x, y) for x in real for y in made]
    return within(real) + within(made) - 2 * sum(between) / len(between)


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [6, 60])
def test_distances_of_sets(dimensions: int) -> None:
    """More images than dimensions, and fewer, where covariances have no full rank."""
    from batchgen.scoring.distances import distance

    random = np.random.default_rng(0)
    real = random.normal(0, 1, (40, dimensions)).astype(np.float32)
    made = (random.normal(0.5, 2, (40, dimensions)) @ random.normal(0, 0.3, (dimensions, dimensions))).astype(
        np.float32
    )
    found = {**distance("fid", real, made), **distance("kid", real, made)}
    assert found["fid"] == pytest.approx(frechet(real.astype(float), made.astype(float)), rel=1e-5)
    assert found["kid"] == pytest.approx(discrepancy(real.astype(float), made.astype(float)), rel=1e-5)
    assert found["kid_std"] == pytest.approx(0, abs=1e-6)  # every draw is the whole of both sets
    drawn = distance("kid", real, made[:20])
    assert drawn == distance("kid", real, made[:20]) and drawn["kid_std"] > 0


def real_images(folder: Path, count: int, first: int = 1000) -> Path:
    """A folder of images beside those that outputs of these tests hold."""
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        Image.fromarray(pixels_of(number)).save(folder / f"photo-{number}.png")
    return folder


def seen(numbers: Sequence[int]) -> Features:
    """What builtin-clip sees, without a processor of transformers."""
    import torch
    from test_scores import preprocessed
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(companion_path("builtin-clip")).eval()
    with torch.no_grad():
        found = model.get_image_features(torch.stack([preprocessed(number) for number in numbers])).pooler_output
    return np.asarray(found, dtype=float)


class Telling:
    """A scorer that notes how far its worker is whenever it is asked; two images in one call it refuses, once."""

    def __init__(self, worker: ScoringWorker, cells: Mapping[str, Any], refuses: int) -> None:
        self.said: list[int] = []
        self._worker, self._cells, self._refuses = worker, cells, refuses

    def score(
        self, images: Sequence[Image.Image], _rows: Sequence[Mapping[str, Any]], /
    ) -> Sequence[Mapping[str, Any]]:
        self.said += self._worker.progress().values()
        if len(self.said) == self._refuses:
            raise ValueError("too many at once")
        return [self._cells for _ in images]


@pytest.mark.slow
def test_a_worker_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Incident: it said nothing, and one that hung was noticed after ten hours. Nothing is said before all models."""
    dataset, real = make_output(tmp_path / "out", 25), real_images(tmp_path / "real", 20)
    features, fid = find_metrics(["fid"])
    models = find_models([features, fid], {"reference": str(real)}, allow_pickle=False)
    worker = make_worker(dataset, {**models, "sharpness": {}})
    sharp = worker._scorers["sharpness"] = Telling(worker, {"sharpness": 1.0}, 2)
    (shard,) = dataset.shards()
    seen = worker._scorers["features"] = Telling(worker, {"features": np.arange(3, dtype=np.float32)}, 0)
    worker.run(ScoreUnit(shard=shard, rows=25, metrics=("sharpness", "features")))
    assert sharp.said == [0, 32, *range(32, 41)], "a batch of 16, and one of 9 taken apart"
    assert seen.said == [0, 41] and worker.progress() == {}

    seen.said.clear()
    (unit,) = reference_units(dataset, [fid], models)
    worker.run(unit)
    assert seen.said == [0, 16]

    from batchgen.scoring.distances import distance

    groups: list[int] = []

    def compare(*given: Any) -> Mapping[str, float]:
        groups.extend(worker.progress().values())
        return distance(*given)

    monkeypatch.setattr("batchgen.scoring.distances.distance", compare)
    (sets,) = sets_units(dataset, [fid], models, ["prompt"])
    worker.run(sets)
    assert groups == list(range(5)) and worker.progress() == {}


@pytest.mark.slow
def test_groups_against_a_folder(tmp_path: Path, batchgen: RunCli) -> None:
    """By a column and over all; what is stored is not computed again, and is where a real image is another."""
    output, real = tmp_path / "out", real_images(tmp_path / "real", 20)
    (real / "notes.txt").write_text("no image")
    (real / "broken.png").write_bytes(b"no image either")
    dataset = make_output(output, 20, rows=10)
    lines: list[str] = []

    def measure(**settings: Any) -> Mapping[str, Sequence[Group]]:
        models = {"reference": str(real)}
        job = ScoringJob(output=str(output), metrics=["fid", "kid"], models=models, workers=0, **settings)
        return {table.metric: table.groups for table in score(job, lines.append).groups}

    by_prompt = measure(by=["prompt"])
    assert any("builtin-clip" in line and "--features" in line for line in lines)
    assert any("dimensions" in line and "biased" in line for line in lines)
    truth, prompts = seen(range(1000, 1020)), dict[str, list[int]]()
    for row in dataset.rows():
        prompts.setdefault(row.cells["prompt"], []).append(int(row.cells["id"].removeprefix("row-")))
    assert len(prompts) == len(by_prompt["fid"]) == len(by_prompt["kid"]) == 5
    for group in by_prompt["fid"]:
        numbers = prompts[group.values["prompt"]]
        assert group.rows == len(numbers) == 4
        assert group.scores["fid"] == pytest.approx(frechet(truth, seen(numbers)), rel=1e-3)
    before = stamps(output, "fid") | stamps(output, "features")
    assert measure(by=["prompt"]) == by_prompt
    assert stamps(output, "fid") | stamps(output, "features") == before

    Image.fromarray(pixels_of(7)).save(real / "photo-1000.png")
    features, kid = find_metrics(["kid"])
    models = find_models([features, kid], {"reference": str(real)}, allow_pickle=False)
    assert not list(score_units(dataset, [features], models))
    worker = make_worker(dataset, models)
    for part in reference_units(dataset, [kid], models):
        worker.run(part)
    for sets in sets_units(dataset, [kid], models, []):
        worker.run(sets)
    assert not [*reference_units(dataset, [kid], models), *sets_units(dataset, [kid], models, [])]
    table = read_table(dataset, kid, [])
    assert table is not None and table.about["reference_images"] == 20  # the broken one is none
    (whole,) = table.groups
    assert whole.scores["kid"] == pytest.approx(discrepancy(seen([7, *range(1001, 1020)]), seen(range(20))), rel=1e-3)

    done = batchgen("score", output, "-k", "fid", "--reference", real, "--by", "sceduler", *HERE)
    assert done.returncode == 2 and "did you mean 'scheduler'" in done.stderr
    done = batchgen("report", output)
    assert done.returncode == 0, done.stderr
    index = (output / "report" / "data" / "index.js").read_text()
    shown = json.loads(index.removeprefix("report.index(").removesuffix(");\n"))["sets"]
    assert len(shown) == 11
    assert [one["value"] for one in shown if one["metric"] == "kid" and one["group"] == "all"] == [whole.scores["kid"]]
    drop = next(receipt for receipt in read_receipts(dataset, repair=True))
    drop_rows(dataset, drop, {(f"row-{number}", f"{number:064x}") for number in range(20) if number % 5 == 0})
    assert not list(read_groups(dataset)), "of rows that are no more"


def alexnet() -> dict[str, Any]:
    """Weights by torchvision's names, as no training left them."""
    import torch

    torch.manual_seed(0)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    weights = {}
    for number, (width, depth, side) in shapes.items():
        weights[f"features.{number}.weight"] = torch.randn(width, depth, side, side) / (depth * side * side) ** 0.5
        weights[f"features.{number}.bias"] = torch.randn(width) / 10
    return weights


def lpips(one: Image.Image, other: Image.Image, weights: Mapping[str, Any]) -> float:
    """Zhang et al. 2018, equation 1, layer by layer."""
    import torch
    import torchmetrics
    from torch.nn.functional import conv2d, max_pool2d

    heads = Path(str(torchmetrics.__file__)).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    linear = torch.load(heads, weights_only=True, map_location="cpu")
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def layers(image: Image.Image) -> list[Any]:
        x = torch.from_numpy(np.asarray(image) / 127.5 - 1).float()
        x = ((x - shift) / scale).permute(2, 0, 1)[None]
        found = []
        for number, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if number in (3, 6):
                x = max_pool2d(x, 3, 2)
            x = conv2d(x, weights[f"features.{number}.weight"], weights[f"features.{number}.bias"], stride, padding)
            x = x.relu()
            found.append(x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt())
        return found

    return sum(
        float((linear[f"lin{n}.model.1.weight"][:, :, 0, 0] @ (a - b).square().flatten(2)).mean())
        for n, (a, b) in enumerate(zip(layers(one), layers(other), strict=True))
    )


@pytest.mark.slow
def test_lpips_of_pairs(tmp_path: Path) -> None:
    """Each image against the real one of its name, brought to its size; one without has no score."""
    from safetensors.torch import save_file

    weights, real = alexnet(), tmp_path / "real"
    save_file(weights, tmp_path / "alexnet.safetensors")
    real.mkdir()
    for number in range(6):
        Image.fromarray(pixels_of(number + 1, side=96 if number % 2 else 64)).save(real / f"row-{number}.jpg")
    dataset = make_output(tmp_path / "out", 7, rows=7)
    models = {"lpips": str(tmp_path / "alexnet.safetensors"), "reference": str(real)}
    found = scored(dataset, "lpips", models=models)
    for number in range(6):
        other = Image.open(real / f"row-{number}.jpg").resize((64, 64), Image.Resampling.BICUBIC)
        wanted = lpips(Image.fromarray(pixels_of(number)), other, weights)
        assert found[f"row-{number}"]["lpips"] == pytest.approx(wanted, abs=1e-5)
    assert found["row-6"]["lpips"] is found["row-6"]["lpips_error"] is None


@pytest.mark.slow
def test_features_of_another_model(tmp_path: Path) -> None:
    """A DINOv2 folder, whose pooled output it takes; a model of words alone is refused before anything starts."""
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    model = Dinov2Model(Dinov2Config(**shape)).eval()
    model.save_pretrained(tmp_path / "dino")
    BitImageProcessor(size={"height": 56, "width": 56}, do_center_crop=False).save_pretrained(tmp_path / "dino")
    dataset = make_output(tmp_path / "out", 4)
    scored(dataset, "features", models={"features": str(tmp_path / "dino")})
    table = pq.read_table(next((tmp_path / "out").glob("scores/features/*.parquet")))
    mean, deviation = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    for id_, vector in zip(table["id"].to_pylist(), table["features"].to_pylist(), strict=True):
        image = Image.fromarray(pixels_of(int(id_.removeprefix("row-")))).resize((56, 56), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy((np.asarray(image) / 255 - mean) / deviation).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            wanted = model(pixels).pooler_output[0]
        assert vector == pytest.approx(wanted.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-k", "fid"], "fid needs a folder of real images; give --reference"),
        (["-k", "kid", "--reference", "nowhere"], "nowhere"),
        (["-k", "fid", "--reference", "empty"], "holds 0 images"),
        (["-k", "fid", "--reference", "empty", "--features", "/nowhere"], "--features /nowhere"),
        (["-k", "lpips", "--reference", "empty"], "lpips needs AlexNet's or VGG16's weights"),
        (["-k", "sharpness", "--by", "prompt"], "--by"),
    ],
)
def test_what_is_missing_is_said_first(arguments: Sequence[str], words: str, tmp_path: Path, batchgen: RunCli) -> None:
    (tmp_path / "empty").mkdir()
    make_output(tmp_path / "out", 4)
    done = batchgen("score", "out", *arguments, *HERE, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and words in done.stderr, done.stderr
    assert not list((tmp_path / "empty").iterdir()) and not (tmp_path / "out" / "scores").exists()
