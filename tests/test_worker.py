"""The worker alone, without Ray: what becomes of rows and shards whose calls fail."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image
from s3_faults import Fault, Kind, fault_proxy
from s3_server import S3Server
from safetensors.torch import save_file
from tiny_adapters import build_lora
from tiny_models import build_sd1, tiny_vae

import batchgen
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.format import new_format
from batchgen.diffusion.canary import Canary
from batchgen.diffusion.device import device_errors
from batchgen.diffusion.host import Images, PipelineHost
from batchgen.diffusion.settings import WorkerSettings
from batchgen.diffusion.worker import ALIKE, PROBES, GenerationWorker
from batchgen.driver import resolved_rows
from batchgen.errors import DeviceLost, OutOfDeviceMemory
from batchgen.job import Job, load_job
from batchgen.options import ImageFormat, Layout
from batchgen.rows import MicroBatch, Receipt, Row, ShardProgress
from batchgen.sharding import Sizing, make_shards
from batchgen.storage import open_store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("worker") / "sd1")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each call that reached the host, which goes on doing what it does."""
    counted: list[int] = []
    original = PipelineHost.generate

    def counting(self: PipelineHost, wanted: Any, batch: Any, *args: Any, **kwargs: Any) -> Images:
        counted.append(len(batch.rows))
        return original(self, wanted, batch, *args, **kwargs)

    monkeypatch.setattr(PipelineHost, "generate", counting)
    return counted


def run(
    folder: Path,
    model: Path,
    rows: Sequence[Mapping[str, Any]],
    damage: Path | None = None,
    moved: str | None = None,
) -> tuple[Receipt, list[dict[str, Any]]]:
    """Check the rows, damage a file, and run them as one shard of micro-batches of 4: the receipt and the ledger.

    The last row's images are at `moved` by then.
    """
    lines = (json.dumps({"width": 32, "height": 32, "steps": 1, **row}) for row in rows)
    (folder / "m.jsonl").write_text("\n".join(lines))
    sizing = Sizing(device="cpu", workers=1, batch_size=4, shard_rows=100)
    with resolved_rows(Job(manifest=str(folder / "m.jsonl"), model=str(model))) as (index, resolved):
        (shard,) = make_shards(index.pending(100), [(group.key, group.total) for group in index.groups()], sizing)
    if damage is not None:
        damage.write_bytes(b"no longer what it was")
    if moved is not None:
        *mates, last = shard.rows
        inputs = {name: replace(image, uri=moved) for name, image in last.inputs.items()}
        shard = replace(shard, rows=(*mates, replace(last, inputs=inputs)))
    dataset = Dataset.begin(
        open_store(str(folder / "out")), new_format(Layout.FILES, ImageFormat.PNG, resolved.carried), create=True
    )
    settings = WorkerSettings(
        run="r", store=dataset.uri, storage_options={}, output=dataset.format, models=resolved.models,
        device="cpu", dtype="float32", dtypes={},
    )  # fmt: skip
    worker = GenerationWorker(settings)
    receipt = worker.run(shard)
    assert worker.progress() == {}
    ledgers = list((folder / "out" / "failures").glob("*.parquet"))
    return receipt, [row for ledger in ledgers for row in pq.read_table(ledger).to_pylist()]


@pytest.mark.slow
def test_an_error_of_the_key_is_found_out_with_few_calls(model: Path, calls: list[int], tmp_path: Path) -> None:
    """Incident: 1,024 rows whose scheduler refused their steps cost 2,176 attempts and as many shards of one row."""
    lora = build_lora(tmp_path / "lora.safetensors", model)
    receipt, ledger = run(
        tmp_path, model, [{"prompt": "a", "seed": n, "loras": str(lora)} for n in range(30)], damage=lora
    )
    assert (receipt.done, receipt.failed, len(ledger)) == (0, 30, 30)
    assert calls == [4, *[1] * (ALIKE + PROBES)]
    assert {row["error_class"] for row in ledger} == {"input"}
    assert len({row["error"] for row in ledger}) == 1


def test_one_bad_row_does_not_harm_its_mates(model: Path, calls: list[int], tmp_path: Path) -> None:
    """An embedding that was right at the check and is damaged now fails the row that lists it, alone."""
    embedding = tmp_path / "ring.safetensors"
    save_file({"emb_params": torch.zeros(1, 32)}, embedding)
    plain = [{"prompt": "a ring", "seed": n} for n in range(8)]
    rows = [*plain[:5], {**plain[5], "embeddings": [{"path": str(embedding), "token": "ring"}]}, *plain[6:]]
    receipt, ledger = run(tmp_path, model, rows, damage=embedding)
    assert (receipt.done, receipt.failed) == (7, 1)
    assert calls == [4, 4, 1, 1, 1, 1, 4]  # the last one is the canary's
    assert [row["error_class"] for row in ledger] == ["input"]
    assert "ring.safetensors" in ledger[0]["error"]
    (kept,) = (tmp_path / "out").glob(".batchgen/runs/r/tracebacks/*.txt")  # of its mates' call and of its own
    assert "Traceback (most recent call last)" in kept.read_text() and "ring.safetensors" in kept.read_text()


def test_an_image_whose_host_is_away_fails_its_row(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Incident: it ended the run of all rows."""
    monkeypatch.setattr("batchgen.web._PAUSES", (0.01,))
    Image.new("RGB", (32, 32)).save(tmp_path / "init.png")
    rows = [{"prompt": "a", "seed": n, "image": "init.png", "strength": 1} for n in range(3)]
    receipt, ledger = run(tmp_path, model, rows, moved="http://nowhere.invalid/init.png")
    assert (receipt.done, [row["error_class"] for row in ledger]) == (2, ["conditioning"])
    assert ledger[0]["error"].startswith("http://nowhere.invalid/init.png: ")


def test_progress_counts_images_as_they_are_made(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a worker says before each call: the rows behind it, and their images once they are stored."""
    said: list[ShardProgress] = []
    original = GenerationWorker._generate

    def telling(self: GenerationWorker, *args: Any) -> None:
        for future in self._in_work[next(iter(self._in_work))].pending.values():
            future.result()
        said.extend(self.progress().values())
        original(self, *args)

    monkeypatch.setattr(GenerationWorker, "_generate", telling)
    embedding = tmp_path / "ring.safetensors"
    save_file({"emb_params": torch.zeros(1, 32)}, embedding)
    rows: list[dict[str, Any]] = [{"prompt": "a ring", "seed": n} for n in range(11)]
    rows.append({**rows[0], "seed": 11, "embeddings": [{"path": str(embedding), "token": "ring"}]})
    receipt, _ = run(tmp_path, model, rows, damage=embedding)
    assert [progress[:2] for progress in said] == [(n, n) for n in (0, 4, 8, 8, 9, 10, 11)]
    assert said[-1].seconds == pytest.approx(receipt.seconds)
    assert 0 == said[0].seconds < said[1].seconds


@pytest.mark.s3
@pytest.mark.parametrize(("room", "least", "most"), [(1 << 20, 3, 6), (0, 1, 2)])
def test_the_device_goes_on_while_the_store_is_slow(
    room: int,
    least: int,
    most: int,
    model: Path,
    s3_server: S3Server,
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Further shards are made while markers wait to be written, as many as there is memory for; all arrive."""
    monkeypatch.setattr("batchgen.diffusion.worker.SLOW_STORE", 0.01)
    monkeypatch.setattr("batchgen.diffusion.worker.SPOOL", room)
    rows = [{"prompt": "a", "seed": number, "width": 32, "height": 32, "steps": 1} for number in range(6)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    slow = Fault(kind=Kind.DELAY, method="PUT", key="*/metadata.parquet", seconds=3, times=None)
    with fault_proxy(s3_server, [slow]) as proxy:
        options = {"endpoint_url": proxy.server.endpoint}
        settings = {"model": str(model), "output": f"{s3_bucket}/out", "storage_options": options}
        job = load_job(str(tmp_path / "m.jsonl"), **settings, workers=0, shard_rows=1, batch_size=1)
        assert batchgen.run(job).done == 6
        written = [request.key for request in proxy.requests if request.method == "PUT"]
    first = next(number for number, key in enumerate(written) if "/receipts/" in key)
    assert least <= sum(key.endswith("metadata.parquet") for key in written[:first]) <= most


@pytest.mark.slow
def test_many_rows_that_fail_alike_do_not_harm_the_rest(model: Path, calls: list[int], tmp_path: Path) -> None:
    """Incident: after four rows that listed one damaged embedding, rows without it were recorded untried."""
    embedding = tmp_path / "ring.safetensors"
    save_file({"emb_params": torch.zeros(1, 32)}, embedding)
    bad = {"embeddings": [{"path": str(embedding), "token": "ring"}]}
    rows = [{"prompt": "a ring", "seed": n, **(bad if n < 14 else {})} for n in range(20)]
    receipt, ledger = run(tmp_path, model, rows, damage=embedding)
    assert (receipt.done, receipt.failed) == (6, 14)
    assert len({row["id"] for row in ledger}) == 14
    assert (
        sum(calls) <= 20 + 16 + 4
    )  # the canary's, each row once, and those of the four micro-batches that failed whole a second time


def test_a_canary_whose_adapter_is_gone_fails_no_shard(model: Path, tmp_path: Path) -> None:
    """Incident: the remembered call named a LoRA that was removed since, and failed a shard without it."""
    lora = build_lora(tmp_path / "lora.safetensors", model)
    cells = {"prompt": "a", "seed": 1, "width": 32, "height": 32, "steps": 1}
    (tmp_path / "m.jsonl").write_text(f"{json.dumps({**cells, 'loras': str(lora)})}\n{json.dumps(cells)}")
    with resolved_rows(Job(manifest=str(tmp_path / "m.jsonl"), model=str(model))) as (index, resolved):
        rows = {row.id: row for _, row in index.pending()}
        with_lora = next(row for row in rows.values() if row.parameters.adapters.loras)
        (plain,) = (row for row in rows.values() if row is not with_lora)
    canary, found = Canary(PipelineHost(device="cpu", dtype="float32")), resolved.models[str(model)]

    def make(row: Row) -> None:
        canary.generate(found, MicroBatch(rows=[row], size=1), [{}], refiner=None, save_steps=())

    make(with_lora)
    lora.unlink()
    with pytest.raises(ValueError, match="broadcast"):
        broken = replace(plain.parameters.sampling, scheduler="PNDMScheduler")
        make(replace(plain, parameters=replace(plain.parameters, sampling=broken)))
    canary.check("shard")
    make(plain)
    canary.check("next")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), OutOfDeviceMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), OutOfDeviceMemory),
        (RuntimeError("CUDA error: device-side assert triggered\nmore"), DeviceLost),
        (torch.AcceleratorError("an illegal memory access"), DeviceLost),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
        (ValueError("CUDA error in a prompt"), ValueError),
    ],
)
def test_what_the_device_raises_becomes_ours(raised: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught, device_errors(16):
        raise raised
    assert type(caught.value) is expected
    if expected is OutOfDeviceMemory:
        assert "a call of 16 images does not fit on the device; try --batch-size" in str(caught.value)


def test_a_call_that_does_not_fit_is_made_in_halves(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Incident: a call too large cost the whole shard its rows, those that were made already among them.

    Three images of 32 pixels are too much here, one of 64 is; what was learnt holds for the calls after.
    """
    original, sizes = PipelineHost.generate, list[tuple[int, int]]()

    def small(self: PipelineHost, wanted: Any, batch: MicroBatch, *args: Any, **kwargs: Any) -> Images:
        sizes.append((side := batch.rows[0].parameters.canvas.width, batch.size))
        if batch.size * side**2 > 2 * 32**2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return original(self, wanted, batch, *args, **kwargs)

    monkeypatch.setattr(PipelineHost, "generate", small)
    receipt, ledger = run(tmp_path, model, [{"prompt": "a", "seed": n} for n in range(10)])
    assert (receipt.done, receipt.failed, ledger) == (10, 0, [])
    assert [size for _, size in sizes if size > 1][:2] == [4, 2] and sizes.count((32, 4)) == 1
    table = pq.read_table(next((tmp_path / "out").rglob("metadata.parquet")))
    assert set(table["batch_size"].to_pylist()) == {2}
    large = tmp_path / "large"
    large.mkdir()
    receipt, ledger = run(large, model, [{"prompt": "a", "seed": n, "width": 64, "height": 64} for n in range(3)])
    assert (receipt.done, receipt.failed) == (0, 3)
    assert {(row["error_class"], row["error"]) for row in ledger} == {
        (
            "out-of-memory",
            "a call of 1 images does not fit on the device; try --batch-size (CUDA out of memory. Tried to allocate "
            "20 GiB)",
        )
    }


@pytest.mark.slow
def test_hires_fix_knows_the_size_of_a_latent(tmp_path: Path) -> None:
    """Incident: hires fix took a latent for 8 pixels, whatever the autoencoder, so control images had another size."""
    model = build_sd1(tmp_path / "sd1")
    tiny_vae(levels=3).save_pretrained(model / "vae")  # 4 pixels a latent
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16))  # 4 pixels a latent, too
    net.save_pretrained(control := tmp_path / "control")
    Image.linear_gradient("L").convert("RGB").resize((32, 32)).save(tmp_path / "edges.png")
    row = {"prompt": "a", "seed": 1, "width": 32, "height": 32, "steps": 2, "hires_scale": 2.0}
    row |= {"controlnet": str(control), "control_image": "edges.png"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    with resolved_rows(Job(manifest=str(tmp_path / "m.jsonl"), model=str(model))) as (index, resolved):
        (shard,) = make_shards(
            index.pending(1), [(group.key, group.total) for group in index.groups()], Sizing(device="cpu", workers=1)
        )
    (batch,) = shard.micro_batches()
    seen: list[torch.Size] = []
    host = PipelineHost(device="cpu", dtype="float32")
    original = ControlNetModel.forward

    def watched(self: ControlNetModel, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["controlnet_cond"].shape[-2:])
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ControlNetModel, "forward", watched)
        images = host.generate(
            resolved.models[str(model)], batch, [{"control_image": Image.open(tmp_path / "edges.png")}]
        ).pixels
    assert images.shape == (1, 64, 64, 3)
    assert set(seen) == {torch.Size([32, 32]), torch.Size([64, 64])}
