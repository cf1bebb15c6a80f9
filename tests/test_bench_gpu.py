"""The GPU benchmark: every phase runs on a CPU, phases cannot harm each other, and differences are named by module."""

import csv
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "jobs" / "bench" / "gpu"
SET = ("PYTORCH_NVML_BASED_CUDA_CHECK", "CUBLAS_WORKSPACE_CONFIG")  # by `measure`, before torch is read


@pytest.fixture(scope="module", autouse=True)
def _scripts() -> Iterator[None]:
    """The scripts find each other by their folder; what `measure` sets in this process ends with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(FOLDER), str(FOLDER.parent), *sys.path])
        for name in SET:
            patch.setenv(name, "")
            patch.delenv(name)
        yield


def measure(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "measure.py"), *arguments]
    env = {name: value for name, value in os.environ.items() if name not in SET}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)


# --- the whole script


@pytest.mark.ray
def test_every_phase_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be shown without a GPU is that the numbers are right; that every phase's code is sound can."""
    done = measure("--out", str(tmp_path), "--tiny", "--device", "cpu", "--budget", "500", "--pytest")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    (file,) = tmp_path.glob("*-cpu.json")
    assert json.loads(file.read_text())["records"] == records
    by_phase: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_phase.setdefault(record["phase"], []).append(record)
    assert {record["status"] for phase in by_phase.values() for record in phase if "limit" in record} == {"done"}
    main = import_module("measure").main
    assert main(["--out", str(tmp_path / "x"), "--tiny", "--device", "cpu", "--pytest", "--list"]) == 0
    assert capsys.readouterr().out.split("\n")[:-1] == list(by_phase)
    same = [record for record in records if record["phase"].startswith("sameness") and "task" in record]
    assert len(same) == 4 + 1 + 1 + 1
    assert all(record["same"] and record["finite"] for record in same)
    assert by_phase["fresh:second"][0]["same"]
    assert by_phase["fresh:second"][0]["process"] != by_phase["fresh:first"][0]["process"]
    assert by_phase["out-of-memory"][0]["as_expected"]
    assert by_phase["run:sd15"][0]["as_expected"]
    assert by_phase["broken-worker"][0]["as_expected"]
    assert by_phase["worker:sd15"][0]["failed"] == 0
    assert by_phase["pytest"][0]["exit_code"] == 0
    halves = [record["psnr_db"] for record in by_phase["precision:sd15"] if record.get("dtype") == "float16"]
    assert min(halves) > 30  # the same noise
    rates = [record for record in by_phase["rates:sd15"] if "split" in record]
    assert all(sum(record["split"].values()) == pytest.approx(record["seconds"], abs=2e-3) for record in rates)
    assert {"text", "unet", "scheduler", "decode", "rest"} <= rates[0]["split"].keys()
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert any("| text-to-image, batch 4 | same bit for bit |" in line for line in table)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_line_says_so_and_a_smaller_run_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", str(tmp_path), "--weights", "nowhere", "--only", "facts,lost-device"]
    assert import_module("measure").main(arguments) == 2
    said = capsys.readouterr()
    assert "small nets run on the CPU instead" in said.err
    assert "--weights nowhere is no model's folder" in said.err
    assert "Traceback" not in said.err
    assert "| facts | bfloat16 matrix product |" in said.out
    assert "| lost-device | as expected |" in said.out


def test_without_diffusers_the_facts_are_measured(tmp_path: Path) -> None:
    """A bare machine whose wheels were forgotten: its ceilings are still worth the minutes."""
    code = (
        "import importlib.util as util, runpy, sys; find = util.find_spec; "
        "util.find_spec = lambda name, *rest: None if name == 'diffusers' else find(name, *rest); "
        f"sys.argv = ['measure.py', '--out', {str(tmp_path)!r}, '--tiny', '--device', 'cpu']; "
        f"runpy.run_path({str(FOLDER / 'measure.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("missing packages: diffusers; only the phase facts runs")
    assert "bfloat16 matrix product" in done.stdout


# --- boxes


def _passes(journal: Any, phase: str) -> None:
    journal.write(phase, value=1)


def _fails(journal: Any, phase: str) -> None:
    journal.write(phase, value=1)
    raise ValueError("no such thing")


def _dies(journal: Any, phase: str) -> None:
    del journal, phase
    os.kill(os.getpid(), 9)


def _hangs(journal: Any, phase: str) -> None:
    child = subprocess.Popen(["sleep", "100"])
    journal.write(phase, child=child.pid)
    _wait_for_ever()


def _wait_for_ever() -> None:
    time.sleep(100)


def _runs(process: int) -> bool:
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


def test_a_phase_takes_no_other_with_it(tmp_path: Path) -> None:
    """What fails, dies or hangs is recorded with the place, and those after it run; nothing it started is left."""
    boxes = import_module("boxes")
    journal = boxes.Journal(file=tmp_path / "results.jsonl")
    runs = {"fails": _fails, "dies": _dies, "hangs": _hangs, "passes": _passes}
    wanted = [boxes.Box(name=name, run=run, arguments={}, seconds=5.0) for name, run in runs.items()]
    lines: list[str] = []
    boxes.run_boxes(wanted, journal, 60.0, say=lines.append)
    ends = {record["phase"]: record for record in journal.read() if "status" in record}
    assert {name: end["status"] for name, end in ends.items()} == {
        "fails": "failed", "dies": "failed", "hangs": "ran over", "passes": "done",
    }  # fmt: skip
    assert "ValueError: no such thing" in ends["fails"]["traceback"]
    assert ends["dies"]["exit_code"] == -9
    assert "_wait_for_ever" in ends["hangs"]["traceback"]
    assert not _runs(journal.read("hangs")[0]["child"])
    assert [record["value"] for record in journal.read("fails") if "value" in record] == [1]
    assert len(lines) == 4


def test_no_phase_begins_when_the_budget_is_spent(tmp_path: Path) -> None:
    boxes = import_module("boxes")
    journal = boxes.Journal(file=tmp_path / "results.jsonl")
    wanted = [boxes.Box(name=name, run=_hangs, arguments={}, seconds=60.0) for name in ("first", "second")]
    started = time.monotonic()
    boxes.run_boxes(wanted, journal, 5.0, say=lambda _line: None)
    assert time.monotonic() - started < 10
    assert [record["status"] for record in journal.read() if "status" in record] == ["ran over", "no time left"]


# --- the first module that differs


def _net() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(4, 4, 3, padding=1)]
    return torch.nn.Sequential(*layers).eval()


@pytest.mark.parametrize("leaky", [None, "unet.2"])
def test_the_first_module_that_differs_is_named(leaky: str | None) -> None:
    """A module that looks at a row's mates is found, and where none does nothing is accused."""
    checksums = import_module("checksums")
    net = _net()
    if leaky:
        net[2].register_forward_hook(lambda _m, _a, output: output + output.mean())  # type: ignore[index]
    rows = torch.randn(4, 4, 8, 8)
    traces = checksums.Trace(), checksums.Trace()
    with torch.inference_mode():
        with traces[0].watching({"unet": net}):
            net(rows)
        with traces[1].watching({"unet": net}):
            net(rows.flip(0) if leaky is None else rows[[1, 1, 1, 1]])
    places = (1, 2) if leaky is None else (1, 0)
    found = checksums.first_difference(traces[0], places[0], traces[1], places[1], 4)
    assert found.startswith("no module's output differs" if leaky is None else "unet.2 ")


def test_checksums_see_every_bit() -> None:
    checksum = import_module("checksums").checksum
    tensor = torch.randn(2, 3, 5, dtype=torch.float16)
    other = tensor.clone()
    other[1, 2, 4] = torch.nextafter(other[1, 2, 4], torch.tensor(9.0, dtype=torch.float16))
    swapped = tensor.clone()
    swapped[0, 0, 0], swapped[0, 0, 1] = tensor[0, 0, 1], tensor[0, 0, 0]
    first, second, third = checksum(tensor).tolist(), checksum(other).tolist(), checksum(swapped).tolist()
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert first[0] != third[0]


# --- nets and costs


@pytest.mark.parametrize(
    ("name", "millions"), [("sd15", 859.52), ("sd21", 865.91), ("sdxl", 2567.46), ("refiner", 2259.53)]
)
def test_nets_are_the_published_ones(name: str, millions: float) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    net = import_module("nets").NETS[name]
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**net.unet), AutoencoderKL(**net.vae)
    assert sum(parameter.numel() for parameter in unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert sum(parameter.numel() for parameter in vae.parameters()) / 1e6 == pytest.approx(83.65, abs=0.01)


@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_operations_are_counted_right(name: str) -> None:
    """Those of XL were counted the same way; it takes 10 s."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    net = import_module("nets").NETS[name]
    side = net.side // 8
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        unet = UNet2DConditionModel(**net.unet)
        unet(torch.empty(1, 4, side, side), 1, torch.empty(1, 77, net.unet["cross_attention_dim"]))
    assert counter.get_total_flops() / 1e12 == pytest.approx(net.tflop["unet"], rel=1e-4)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        AutoencoderKL(**net.vae).decode(torch.empty(1, 4, side, side))
    assert counter.get_total_flops() / 1e12 == pytest.approx(net.tflop["decode"], rel=1e-4)


def test_weights_keep_the_scale() -> None:
    nets = import_module("nets")
    layer = torch.nn.Conv2d(64, 64, 3, padding=1)
    nets.fill(layer, 1)
    with torch.inference_mode():
        inner = layer(torch.randn(4, 64, 32, 32))[..., 1:-1, 1:-1]
    assert inner.std().item() == pytest.approx(1, abs=0.05)
    again = torch.nn.Conv2d(64, 64, 3, padding=1)
    nets.fill(again, 1)
    assert torch.equal(layer.weight, again.weight)


def test_decibels() -> None:
    decibels = import_module("setting").decibels
    black, grey = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 51, np.uint8)
    assert decibels(black, black) is None
    assert decibels(grey, black) == pytest.approx(13.98, abs=0.01)  # 20 log10(255 / 51)


# --- wheels


def test_a_wheel_without_a_part_is_still_a_wheel(tmp_path: Path) -> None:
    wheels = import_module("wheels")
    wheel = tmp_path / "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing/__init__.py", "x = 1\n")
        archive.writestr("thing/large.jar", b"0" * 10_000)
        archive.writestr(
            "thing-1.dist-info/RECORD", "thing/__init__.py,,\nthing/large.jar,,\nthing-1.dist-info/RECORD,,\n"
        )
    wheels.without(wheel, "thing/large.jar")
    with zipfile.ZipFile(wheel) as archive:
        recorded = {row[0] for row in csv.reader(io.StringIO(archive.read("thing-1.dist-info/RECORD").decode()))}
        assert recorded == set(archive.namelist()) == {"thing/__init__.py", "thing-1.dist-info/RECORD"}
