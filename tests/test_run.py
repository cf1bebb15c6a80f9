"""The main job through the real command line, Ray and store, on a tiny model with the real code."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import HERE, RunCli, WriteManifest, wait_for, workers_below
from PIL import Image
from s3_faults import Fault, Kind, fault_proxy
from s3_server import S3Server
from safetensors.torch import load_file, save_file
from test_kept_outputs import KEPT

from batchgen.storage import open_store

pytestmark = [pytest.mark.slow, pytest.mark.ray]

Rows = list[dict[str, Any]]

LONG = 40  # steps; the tiny model then works long enough on its shards for a signal to meet them
BATCH = ("--batch-size", "4")  # the tiny model's images are so small that 16 would go into one call


def prompts(count: int, steps: int = 3) -> Rows:
    """Rows that differ in everything that may differ within a micro-batch, in two batch keys."""
    return [
        {
            "id": f"row-{number:03d}",
            "prompt": f'a "thing" {number}, 猫\nwith é',
            "negative_prompt": "" if number % 2 else "blurry",
            "seed": number,
            "num_inference_steps": steps,
            "guidance_scale": 1.0 if number % 5 == 0 else 4.0 + number % 3,
            "label": number % 7,
        }
        for number in range(count)
    ]


def images(output: Path) -> dict[str, str]:
    """sha256 of each row's image by id; every row is there once."""
    found = duckdb.sql(f"SELECT id, sha256 FROM '{output}/data/*/metadata.parquet'").fetchall()
    assert len(found) == len(dict(found))
    return dict(found)


def common_arguments(manifest: Path, model: Path, output: Path) -> list[str]:
    return [str(manifest), "--model", str(model), "--output", str(output), "--shard-rows", "4", *BATCH]


def run_records(output: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(output.glob(".batchgen/runs/*/run.json"))]


@contextmanager
def running(arguments: list[str], log: Path, until: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run in its own process group, once `until` stands in its log."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "batchgen", "run", *arguments], stderr=stream, start_new_session=True
        )
        try:
            wait_for(log, until, process=process)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def reference(
    tmp_path_factory: pytest.TempPathFactory, batchgen: RunCli, tiny_model: Path, ray_address: str
) -> tuple[Path, Path]:
    """A manifest of 24 rows and its uninterrupted output, by two workers."""
    folder = tmp_path_factory.mktemp("reference")
    manifest = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(prompts(24, LONG)), manifest)
    job = folder / "job.toml"
    job.write_text(
        f'manifest = "rows.parquet"\nmodel = "{tiny_model}"\noutput = "out"\nworkers = 2\nshard_rows = 8\n'
        "batch_size = 4\n[worker]\nnum_cpus = 0.5\n"
    )
    done = batchgen("run", job, "--address", ray_address)
    assert done.returncode == 0, done.stderr
    return manifest, folder / "out"


def test_every_row_is_in_the_metadata_once_and_verifies(reference: tuple[Path, Path], batchgen: RunCli) -> None:
    """Ids, prompts with quotes and newlines, carried columns and what was applied arrive unchanged."""
    manifest, output = reference
    rows = {row["id"]: row for row in pq.read_table(manifest).to_pylist()}
    table = duckdb.sql(f"SELECT * FROM '{output}/data/*/metadata.parquet'").arrow()
    made = {row["id"]: row for row in table.read_all().to_pylist()}
    assert made.keys() == rows.keys()
    for name, row in rows.items():
        assert {column: made[name][column] for column in row} == row
        assert made[name]["status"] == "done" and made[name]["batch_size"] > 0
    report = batchgen("verify", output, "--deep", "--json")
    assert json.loads(report.stdout) == {
        "shards": 4, "rows": 24, "images": 24, "decoded": 24, "failed_rows": 0, "strays": 0, "removed": 0,
        "outcome": "finished", "manifest_rows": 24, "done": 24, "failed": 0, "left": 0, "faults": [], "repaired": [],
        "ok": True,
    }  # fmt: skip
    status = json.loads(batchgen("status", output, "--json").stdout)
    assert (status["rows"], status["done"], status["failed"], status["left"]) == (24, 24, 0, 0)
    assert not list(output.glob(".batchgen/nodes/*")), "what nodes leave to be seen by the driver goes with the run"


def test_a_second_run_does_nothing_and_starts_nothing(
    reference: tuple[Path, Path], batchgen: RunCli, tiny_model: Path
) -> None:
    """No Ray, no model: a finished output answers within seconds, and no run is recorded."""
    manifest, output = reference
    before = {path: path.stat().st_mtime_ns for path in output.rglob("data/*/*")}
    started = time.monotonic()
    done = batchgen("run", manifest, "--model", tiny_model, "--output", output, "--address", "127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 10
    assert {path: path.stat().st_mtime_ns for path in output.rglob("data/*/*")} == before
    assert len(run_records(output)) == 1


def test_the_output_opens_in_datasets_with_strays_in_it(reference: tuple[Path, Path], tmp_path: Path) -> None:
    """The card tells `datasets` what to read; images of dead attempts, committed shard or not, are not rows."""
    import datasets

    output = tmp_path / "out"
    shutil.copytree(reference[1], output)
    committed = next(output.glob("data/*/metadata.parquet")).parent
    for stray in (committed / "dead", output / "data" / "uncommitted" / "dead"):
        stray.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(stray / "stray.png")
    dataset = datasets.load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(dataset) == 24
    row = dataset[0]
    assert row["image"].size == (64, 64) and row["prompt"].startswith('a "thing"')


def test_workers_shards_and_order_do_not_change_a_pixel(
    reference: tuple[Path, Path],
    batchgen: RunCli,
    write_manifest: WriteManifest,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    """This process and shards of 16 on shuffled rows, in JSONL, give the bytes of two workers and shards of 8."""
    rows = prompts(24, LONG)
    random.Random(3).shuffle(rows)
    manifest = write_manifest("shuffled.jsonl", rows)
    shards = ["--shard-rows", 16, *BATCH]
    done = batchgen("run", manifest, "--model", tiny_model, "--output", tmp_path / "out", *shards, *HERE)
    assert done.returncode == 0, done.stderr
    assert images(tmp_path / "out") == images(reference[1])


def test_appended_and_edited_rows_are_made_and_nothing_else(
    reference: tuple[Path, Path],
    batchgen: RunCli,
    write_manifest: WriteManifest,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    """A row edited under its id replaces the old image; a changed label alone is no reason to make a row again.

    Labels of done rows follow the manifest; `plan` counts them before, and nothing is left to do after.
    """
    output = tmp_path / "out"
    shutil.copytree(reference[1], output)
    before = images(output)
    rows = prompts(25, LONG)
    rows[2]["prompt"] = "something else"
    rows[3]["label"] = rows[4]["label"] = 99
    common = [write_manifest("b.parquet", rows), "--model", tiny_model, "--output", output]
    plan = json.loads(batchgen("plan", *common, "--json").stdout)
    assert (plan["done"], plan["pending"], plan["outdated"]) == (23, 2, 2)
    done = batchgen("run", *common, *HERE)
    assert done.returncode == 0 and "25 of 25 rows done, 2 updated" in done.stderr, done.stderr
    assert "2 of 25 rows to make, 23 done before" in done.stderr
    found = duckdb.sql(f"SELECT id, label FROM '{output}/data/*/metadata.parquet'").fetchall()
    assert dict(found) == {row["id"]: row["label"] for row in rows}
    assert json.loads(batchgen("plan", *common, "--json").stdout)["outdated"] == 0
    after = images(output)
    assert after.keys() == {row["id"] for row in rows}
    assert {name for name in before if before[name] != after[name]} == {"row-002"}
    assert batchgen("verify", output).returncode == 0


def test_interrupted_then_killed_then_resumed(
    reference: tuple[Path, Path], batchgen: RunCli, tiny_model: Path, ray_address: str, tmp_path: Path
) -> None:
    """Ctrl-C commits the shards in work and exits with 3; after SIGKILL what is not committed is made, and no more.

    Meanwhile a second run is kept away by the lease, which names its holder; the holder is not disturbed.
    """
    manifest, expected = reference
    output = tmp_path / "out"
    local = common_arguments(manifest, tiny_model, output)
    arguments = [*local, "--address", ray_address]
    with running([*local, "--workers", "1"], tmp_path / "log", until="rows to make") as process:
        second = batchgen("run", *arguments)
        assert second.returncode == 6
        assert f"process {process.pid}" in second.stderr
        skipped = batchgen("run", *arguments, "--on-busy", "skip")
        assert skipped.returncode == 0 and skipped.stderr.startswith("skipped: ")
        wait_for(tmp_path / "log", "shard ", process=process)
        os.killpg(process.pid, signal.SIGINT)  # to the whole group, as a terminal does
        assert process.wait(timeout=120) == 3
    log = (tmp_path / "log").read_text()
    assert "finishing the shards in work" in log and "the same command goes on" in log
    assert not [path for path in output.glob("data/*") if not (path / "metadata.parquet").exists()]
    with running(arguments, tmp_path / "log", until="shard ") as process:
        process.kill()
        process.wait()
    assert json.loads(batchgen("status", output, "--json").stdout)["outcome"] == "killed"
    committed = {path.parent.name for path in output.glob("data/*/metadata.parquet")}
    assert 2 <= len(committed) < 7
    done = batchgen("run", *arguments)
    assert done.returncode == 0, done.stderr
    assert images(output) == images(expected)
    receipts = [json.loads(path.read_text()) for path in output.glob(".batchgen/receipts/*.json")]
    made_last = {receipt["shard"] for receipt in receipts if receipt["run"] == run_records(output)[-1]["run"]}
    assert made_last and not made_last & committed


def test_a_run_without_workers_stops_at_once(tiny_model: Path, write_manifest: WriteManifest, tmp_path: Path) -> None:
    """Incident: at the second Ctrl-C, amid the first image, the process aborted (134), since a thread was computing."""
    manifest = write_manifest("rows.parquet", prompts(2, 900))
    arguments = [*common_arguments(manifest, tiny_model, tmp_path / "out"), *HERE]
    with running(arguments, tmp_path / "log", until="rows to make") as process:
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        wait_for(tmp_path / "log", "once more stops at once", process=process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 3
    assert "stopped; the same command goes on" in (tmp_path / "log").read_text()
    assert [record["outcome"] for record in run_records(tmp_path / "out")] == ["stopped at once"]


def test_a_killed_worker_is_replaced(reference: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    """SIGKILL of a worker process costs its shards one more try, and nothing else."""
    manifest, expected = reference
    output = tmp_path / "out"
    arguments = [*common_arguments(manifest, tiny_model, output), "--workers", "2"]
    with running(arguments, tmp_path / "log", until="shard ") as process:
        workers = workers_below(process.pid)
        assert workers
        workers[0].kill()
        assert process.wait(timeout=240) == 0
    assert images(output) == images(expected)


def test_a_row_that_breaks_the_pipeline_is_isolated(
    batchgen: RunCli, write_manifest: WriteManifest, tiny_model: Path, tmp_path: Path
) -> None:
    """A hypernetwork that is seen to be none when it is loaded: that row is in the ledger, the others are made."""
    save_file({"weight": torch.zeros(3)}, tmp_path / "none.safetensors")
    rows = prompts(6)
    for row in rows:
        row["guidance_scale"] = 5.0
        row["hypernetwork"] = None
    rows[3]["hypernetwork"] = "none.safetensors"
    output = tmp_path / "out"
    manifest = write_manifest("rows.parquet", rows)
    done = batchgen("run", manifest, "--model", tiny_model, "--output", output, *HERE)
    assert done.returncode == 1, done.stderr
    assert images(output).keys() == {row["id"] for row in rows} - {"row-003"}
    ledger = duckdb.sql(f"SELECT id, status, attempts, error FROM '{output}/failures/*.parquet'").fetchall()
    assert [row[:2] for row in ledger] == [("row-003", "failed")]
    assert "hypernetwork" in ledger[0][3]
    again = batchgen("run", manifest, "--model", tiny_model, "--output", output, "--address", "127.0.0.1:1")
    assert again.returncode == 1, again.stderr
    status = json.loads(batchgen("status", output, "--json").stdout)
    assert (status["done"], status["failed"], status["left"]) == (5, 1, 0)
    assert "0 rows" in batchgen("retry", output, "--class", "nan").stderr
    unknown = batchgen("retry", output, "--class", "nosuch")
    assert unknown.returncode == 2 and "known are conditioning, input" in unknown.stderr
    assert "1 row will" in batchgen("retry", output).stderr
    common = ("run", manifest, "--model", tiny_model, "--output", output, *HERE)
    once_more = batchgen(*common)
    assert once_more.returncode == 1 and "1 of 6 rows to make, 5 done before" in once_more.stderr, once_more.stderr
    assert batchgen("verify", output).returncode == 0


def test_image_to_image_and_inpainting_share_a_manifest(
    batchgen: RunCli, write_manifest: WriteManifest, tiny_model: Path, tmp_path: Path
) -> None:
    """Tasks are inferred row by row; strength 0 gives the init image back up to the autoencoder."""
    Image.effect_noise((72, 64), 80).convert("RGB").save(tmp_path / "start.png")
    mask = Image.new("L", (72, 64))
    mask.paste(255, (0, 0, 36, 64))
    mask.save(tmp_path / "mask.png")
    rows: Rows = [
        {"id": "t", "prompt": "a", "seed": 1, "steps": 4, "image": None, "mask_image": None, "strength": None},
        {"id": "i", "prompt": "a", "seed": 1, "steps": 4, "image": "start.png", "mask_image": None, "strength": 0.5},
        {
            "id": "m",
            "prompt": "a",
            "seed": 1,
            "steps": 4,
            "image": "start.png",
            "mask_image": "mask.png",
            "strength": 1,
        },
        {"id": "z", "prompt": "a", "seed": 1, "steps": 4, "image": "start.png", "mask_image": None, "strength": 0},
    ]
    output = tmp_path / "out"
    manifest = write_manifest("rows.jsonl", rows)
    stored = ["--output", output, "--layout", "parquet", "--format", "webp"]
    done = batchgen("run", manifest, "--model", tiny_model, *stored, *HERE)
    assert done.returncode == 0, done.stderr
    made = {row["id"]: row for path in output.glob("data/*.parquet") for row in pq.read_table(path).to_pylist()}
    assert {name: row["task"] for name, row in made.items()} == {
        "t": "text-to-image", "i": "image-to-image", "m": "inpainting", "z": "image-to-image",
    }  # fmt: skip
    assert (made["i"]["width"], made["i"]["height"]) == (72, 64)
    assert made["m"]["mask_image_sha256"] and made["t"]["image_uri"] is None
    assert len({row["sha256"] for row in made.values()}) == 4
    import datasets

    dataset = datasets.load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert {row["id"]: row["image"].size for row in dataset} == {
        row["id"]: (row["width"], row["height"]) for row in made.values()
    }
    assert batchgen("verify", output, "--deep").returncode == 0


def test_an_output_that_is_taken_away_stops_the_run(
    reference: tuple[Path, Path], batchgen: RunCli, tiny_model: Path, ray_address: str, tmp_path: Path
) -> None:
    """Incident: the store made a moved folder anew, and a run said "48 of 48 rows done" of which 30 were lost.

    By another run that took this one for dead, or to another place: the run stops, and what is there is left alone.
    """
    manifest, expected = reference
    output, moved = tmp_path / "out", tmp_path / "moved"
    arguments = [*common_arguments(manifest, tiny_model, output), "--address", ray_address]
    with running(arguments, tmp_path / "log", until=" images in ") as process:
        output.rename(moved)
        assert process.wait(timeout=120) == 4
    assert "moved, removed or unmounted" in (tmp_path / "log").read_text() and not output.exists()
    moved.rename(output)
    assert batchgen("verify", output).returncode == 0
    lease = output / ".batchgen" / "lease"
    with running(arguments, tmp_path / "log", until="rows to make") as process:
        other = json.dumps({**json.loads(lease.read_text()), "id": "theirs", "run": "theirs"})
        while process.poll() is None:  # a renewal that was under way would have won
            lease.write_text(other)
            time.sleep(0.1)
        assert process.returncode == 6
    assert "run theirs" in (tmp_path / "log").read_text() and lease.read_text() == other
    assert run_records(output)[-1]["outcome"].startswith("failed: ")
    assert images(output) and images(output).items() <= images(expected).items()


def test_limits_stop_a_run_and_the_next_goes_on(
    batchgen: RunCli, write_manifest: WriteManifest, tiny_model: Path, tmp_path: Path
) -> None:
    """max_images of a job ends a run with 3, resumable; --limit is what the user asked for, and ends with 0.

    Shards have the rows that were asked for; the last one, which the limit ends, is announced.
    """
    write_manifest("rows.parquet", [{**row, "guidance_scale": 4.0} for row in prompts(15)])
    job = tmp_path / "job.toml"
    job.write_text(
        f'manifest = "rows.parquet"\nmodel = "{tiny_model}"\noutput = "out"\nshard_rows = 4\nbatch_size = 2\n'
        "[limits]\nmax_images = 6\n"
    )
    first = batchgen("run", job, "--limit", 5, *HERE, "--json")
    assert first.returncode == 0 and "the last one has 1 row\n" in first.stderr, first.stderr
    assert "5 of 15 rows done, 10 left" in first.stderr
    assert json.loads(first.stdout) == {
        "output": str(tmp_path / "out"), "total": 15, "done": 5, "failed": 0, "pending": 10, "updated": 0,
        "interrupted": None,
    }  # fmt: skip
    status = json.loads(batchgen("status", job, "--json").stdout)
    assert (status["outcome"], status["left"]) == ("limit reached", 10)
    assert "all promises hold for what is there; 10 rows are not made (limit reached)" in batchgen("verify", job).stdout
    second = batchgen("run", job, *HERE, "--json")
    said = json.loads(second.stdout)
    assert (second.returncode, said["done"], said["pending"]) == (3, 11, 4), second.stderr
    assert "max_images" in said["interrupted"] and len(images(tmp_path / "out")) == 11
    third = batchgen("run", job, *HERE)
    assert third.returncode == 0 and len(images(tmp_path / "out")) == 15
    assert json.loads(batchgen("status", job, "--json").stdout)["outcome"] == "finished"
    receipts = [json.loads(path.read_text()) for path in (tmp_path / "out").glob(".batchgen/receipts/*.json")]
    assert sorted(receipt["done"] for receipt in receipts) == [1, 2, 4, 4, 4]


def test_a_run_of_which_nothing_can_be_made_ends_early(
    batchgen: RunCli, write_manifest: WriteManifest, tiny_model: Path, tmp_path: Path
) -> None:
    """A model in which all is NaN: what was tried is recorded, the rest is left, and the reason is said."""
    shutil.copytree(tiny_model, broken := tmp_path / "broken")
    weights = next((broken / "unet").glob("*.safetensors"))
    save_file({name: torch.full_like(part, torch.nan) for name, part in load_file(weights).items()}, weights)
    write_manifest("rows.parquet", prompts(60))
    job = tmp_path / "job.toml"
    text = f'manifest = "rows.parquet"\nmodel = "{broken}"\noutput = "out"\nshard_rows = 4\nworkers = 1\n'
    job.write_text(text + "[limits]\nmax_failures = 6\n")
    done = batchgen("run", job, *HERE, "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["done"]) == (3, 0), done.stderr
    assert 6 <= said["failed"] <= 40 and said["failed"] + said["pending"] == 60
    assert "rows failed in one way and not one was made: nan, " in said["interrupted"]


def test_a_run_that_finds_no_place_says_so(
    batchgen: RunCli, write_manifest: WriteManifest, tiny_model: Path, ray_address: str, tmp_path: Path
) -> None:
    """Incident: of a run that could not place a worker `status` said "killed", `verify` that all promises hold."""
    write_manifest("rows.parquet", prompts(3))
    job = tmp_path / "job.toml"
    job.write_text(f'manifest = "rows.parquet"\nmodel = "{tiny_model}"\noutput = "out"\n[worker]\nnum_cpus = 99\n')
    assert batchgen("run", job, "--address", ray_address).returncode == 4
    status = json.loads(batchgen("status", job, "--json").stdout)
    assert status["outcome"].startswith("failed: no node") and (status["rows"], status["left"]) == (3, 3)
    assert not list((tmp_path / "out").glob(".batchgen/nodes/*"))
    assert "[worker]" in batchgen("status", job).stdout
    assert "3 rows are not made (failed: no node" in batchgen("verify", job).stdout


def test_a_cluster_that_does_not_answer_is_the_outcome(
    batchgen: RunCli, write_manifest: WriteManifest, tiny_model: Path, tmp_path: Path
) -> None:
    """It was an output of which `status` said that no row was to be made."""
    output = tmp_path / "out"
    common = [write_manifest("rows.parquet", prompts(3)), "--model", tiny_model, "--output", output]
    assert batchgen("run", *common, "--address", "127.0.0.1:1").returncode == 4
    status = json.loads(batchgen("status", output, "--json").stdout)
    assert status["outcome"].startswith("failed: no Ray cluster answers") and status["left"] == 3


def test_plan_and_dry_run_write_nothing(
    batchgen: RunCli, write_manifest: WriteManifest, tiny_model: Path, tmp_path: Path
) -> None:
    """Counts before the first run, without touching the output."""
    manifest = write_manifest("rows.parquet", prompts(40))
    common = [
        manifest,
        "--model",
        tiny_model,
        "--output",
        tmp_path / "out",
        "--shard-rows",
        8,
        "--device",
        "cpu",
        *BATCH,
    ]
    plan = json.loads(batchgen("plan", *common, "--json").stdout)
    assert (plan["rows"], plan["pending"], plan["keys"], plan["shards"]) == (40, 40, 2, 5)
    assert batchgen("run", *common, "--dry-run").returncode == 0
    assert not (tmp_path / "out").exists()


def test_another_layout_or_other_columns_are_refused(
    reference: tuple[Path, Path], batchgen: RunCli, write_manifest: WriteManifest, tiny_model: Path, tmp_path: Path
) -> None:
    """One output has one schema; what would break its readers ends with 2 before anything is written."""
    manifest, output = reference
    common = ["--model", tiny_model, "--output", output]
    other = batchgen("run", manifest, *common, "--layout", "parquet")
    assert other.returncode == 2 and "layout" in other.stderr
    rows = [{**row, "extra": "x"} for row in prompts(2)]
    wider = batchgen("run", write_manifest("wider.parquet", rows), *common)
    assert wider.returncode == 2 and "extra" in wider.stderr


@pytest.mark.s3
def test_a_job_file_stands_for_its_output(
    s3_server: S3Server, s3_bucket: str, batchgen: RunCli, tmp_path: Path
) -> None:
    """Incident: `status`, `verify` and `retry` looked at another endpoint than the job's [storage_options]."""
    for file in (KEPT / "files").rglob("*"):
        if file.is_file():
            open_store(s3_bucket).write(f"set/{file.relative_to(KEPT / 'files')}", file.read_bytes())
    job = tmp_path / "job.toml"
    job.write_text(
        f'manifest = "m.csv"\noutput = "{s3_bucket}/set"\n[storage_options]\nendpoint_url = "{s3_server.endpoint}"\n'
    )
    elsewhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    assert batchgen("status", f"{s3_bucket}/set", env=elsewhere).returncode == 4
    status = json.loads(batchgen("status", job, "--json", env=elsewhere).stdout)
    assert (status["output"], status["done"], status["failed"]) == (f"{s3_bucket}/set", 5, 1)
    assert batchgen("status", job, "--watch", env=elsewhere).returncode == 1, "a row failed"
    assert batchgen("verify", job, env=elsewhere).returncode == 0
    opened = batchgen("retry", job, env=elsewhere)
    assert opened.returncode == 0 and "1 row will be tried again" in opened.stderr


@pytest.mark.s3
def test_keys_that_expire_end_a_run_on_s3_which_resumes_and_opens_elsewhere(
    reference: tuple[Path, Path], batchgen: RunCli, tiny_model: Path, s3_server: S3Server, s3_bucket: str
) -> None:
    """Exit 4 at once, with what to do, nothing is recorded as failed; the next run makes the bytes of a local one."""
    import polars

    manifest, expected = reference
    output = f"{s3_bucket}/set"
    common = ["run", manifest, "--model", tiny_model, "--output", output, "--shard-rows", 8, *BATCH]
    good = Fault(kind=Kind.DELAY, method="PUT", key="*/metadata.parquet", times=1)
    expired = replace(good, kind=Kind.ERROR, status=400, code="ExpiredToken", times=None)
    with fault_proxy(s3_server, [good, expired]) as proxy:
        done = batchgen(*common, "--workers", 1, env={"AWS_ENDPOINT_URL": proxy.server.endpoint})
        assert 1 <= proxy.met(Kind.ERROR) <= 8, "no image is made once more to meet it again"
    assert done.returncode == 4, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {output}/data/")
    assert "the keys have expired; renew them" in done.stderr
    status = json.loads(batchgen("status", output, "--json").stdout)
    assert 5 <= status["done"] <= 8 and (status["failed"], status["left"]) == (0, 24 - status["done"])
    last = batchgen(*common, *HERE)
    assert last.returncode == 0 and f"{status['done']} done before" in last.stderr, last.stderr
    frame = polars.read_parquet(f"{output}/data/*/metadata.parquet")
    assert dict(frame.select("id", "sha256").iter_rows()) == images(expected)
    assert len(open_store(output).names(".batchgen/nodes")) == 1, "of the run that its store ended"
    assert batchgen("verify", output, "--deep").returncode == 0
