"""Above the engine: how much of its rate reaches the disk, what a whole run does, and the tests marked `gpu`."""

import io
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import diffusers
import torch
from boxes import Journal
from kernels import Kernel, KernelWorker
from samples import Sample, sample
from setting import Setting, generate

from batchgen.dataset.dataset import Dataset
from batchgen.dataset.format import new_format
from batchgen.diffusion.settings import WorkerSettings
from batchgen.diffusion.worker import GenerationWorker
from batchgen.engine.loop import Control, drive
from batchgen.engine.queue import WorkQueue
from batchgen.job import WorkerResources
from batchgen.models.catalog import Model
from batchgen.options import ImageFormat, Layout
from batchgen.storage import open_store
from batchgen.work import Work

__all__ = ["broken_worker", "gpu_tests", "run_end_to_end", "worker"]

REPOSITORY = Path(__file__).resolve().parents[3]
SHARDS_AT_ONCE = 2  # as in a run
SHARDS = 4  # of one micro-batch each, in the measured part
LOOKS_A_SECOND = 20  # at how busy the GPU is


def worker(journal: Journal, phase: str, setting: Setting, net: str, batch: int) -> None:
    """The worker in a loop over a local folder, two shards at once as in a run, against the engine alone."""
    folder = _real_folder(setting, net)
    batch = min(batch, 2) if setting.tiny else batch
    samples = [_shard(setting, folder, phase, net, batch, number) for number in range(SHARDS + 1)]
    host = setting.real_host("float16")
    _, first_call = generate(host, samples[0])
    _, seconds = generate(host, samples[0])
    del host
    made = _worker(setting, samples[0].model)
    made.run(samples[0].shard)
    watch = _BusyWatch(setting.device)
    started = time.perf_counter()
    with watch, ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
        receipts = list(threads.map(made.run, [one.shard for one in samples[1:]]))
    elapsed = time.perf_counter() - started
    done = sum(receipt.done for receipt in receipts)
    journal.write(
        phase,
        net=net,
        batch=batch,
        steps=setting.steps(20),
        seconds_to_first_batch=round(first_call, 2),
        engine_images_per_s=round(batch / seconds, 3),
        worker_images_per_s=round(done / elapsed, 3),
        of_engine=round(done / elapsed / (batch / seconds), 3),
        images=done,
        failed=batch * SHARDS - done,
        bytes_an_image=sum(receipt.bytes for receipt in receipts) // max(done, 1),
        gpu_busy_percent=watch.mean,
    )


def _shard(setting: Setting, folder: Path, phase: str, net: str, batch: int, number: int) -> Sample:
    scratch, side, steps = setting.scratch / phase.replace(":", "-"), setting.net(net).side, setting.steps(20)
    return sample(
        folder,
        scratch,
        count=batch,
        side=side,
        first=batch * number,
        batch_size=batch,
        device=setting.device,
        num_inference_steps=steps,
    )


def _real_folder(setting: Setting, net: str) -> Path:
    """A model's folder with weights, in float16, as users have them."""
    folder = setting.scratch / f"{net}-with-weights"
    if not (folder / "model_index.json").exists():
        host, load = setting.host(net, "float16")
        generate(host, setting.sample(net, "load", count=1, num_inference_steps=1))  # makes the weights
        kind = getattr(diffusers, setting.net(net).pipeline)
        unchecked = {"requires_safety_checker": False} if "safety_checker" in load.parts else {}
        kind(**load.parts, **unchecked).save_pretrained(folder)
    return folder


def _worker(setting: Setting, model: Model) -> GenerationWorker:
    store = open_store(str(setting.scratch / "worker-output"))
    output = Dataset.begin(store, new_format(Layout.FILES, ImageFormat.PNG, {}), create=True)
    return GenerationWorker(
        WorkerSettings(
            run="bench",
            store=store.uri,
            storage_options={},
            output=output.format,
            models={model.name: model},
            device=setting.device,
            dtype="float16",
            dtypes={},
        )
    )


class _BusyWatch:
    """Looks at how busy the GPU is, while it lasts; `mean` is in percent, None where nobody can tell."""

    mean: float | None = None

    def __init__(self, device: str) -> None:
        self._device = device

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._seen: list[int] = []
        self._thread = threading.Thread(target=self._look, daemon=True)
        if self._device == "cuda":
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        if self._device == "cuda":
            self._thread.join()
        self.mean = round(sum(self._seen) / len(self._seen), 1) if self._seen else None

    def _look(self) -> None:
        while not self._over.wait(1 / LOOKS_A_SECOND):
            try:
                self._seen.append(torch.cuda.utilization())
            except Exception:  # no nvidia-ml, or a driver that does not answer it
                return


def run_end_to_end(journal: Journal, phase: str, setting: Setting, net: str) -> None:
    """`batchgen run` on the GPU by Ray, `verify --deep`, and the same command again, which has nothing to do."""
    if find_spec("ray") is None:
        journal.write(phase, status="ray is not installed")
        return
    folder, output = _real_folder(setting, net), setting.scratch / "run-output"
    count, side = 4 if setting.tiny else 96, setting.net(net).side
    scratch = setting.scratch / "run"
    sample(folder, scratch, count=count, side=side, device=setting.device, num_inference_steps=setting.steps(20))
    manifest = scratch / "manifest.jsonl"
    command = ["run", str(manifest), "--output", str(output), "--model", str(folder), "--device", setting.device]
    command += ["--shard-rows", str(max(1, count // 4))] + (["--workers", "1"] if setting.device == "cpu" else [])
    found: dict[str, Any] = {"net": net, "images": count}
    for name, arguments in {"run": command, "verify": ["verify", str(output), "--deep"], "again": command}.items():
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "batchgen", *arguments], capture_output=True, text=True, env=_environment()
        )
        found |= {f"{name}_exit_code": done.returncode, f"{name}_seconds": round(time.perf_counter() - started, 1)}
        if done.returncode:
            found[f"{name}_error"] = done.stderr[-1500:]
    journal.write(
        phase, **found, as_expected=all(found[f"{name}_exit_code"] == 0 for name in ("run", "verify", "again"))
    )
    shutil.rmtree(output, ignore_errors=True)


def broken_worker(journal: Journal, phase: str, setting: Setting) -> None:
    """A kernel that fails ends its process, and the pool replaces it; on a CPU it is an error like others."""
    if find_spec("ray") is None:
        journal.write(phase, status="ray is not installed")
        return
    from batchgen.engine.cluster import cluster
    from batchgen.engine.pool import Pool

    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), _environment()["PYTHONPATH"]])
    kernel = KernelWorker(device=setting.device, failed_once=setting.scratch / "failed-once")
    receipts: list[int] = []
    failures: list[str] = []
    with cluster(None, 1, print):
        pool = Pool(Work(make_worker=kernel.make, on_gpu=setting.device == "cuda"), 1, WorkerResources(), print)
        try:
            drive(
                WorkQueue(iter([Kernel()])),
                pool,
                Control(),
                recovered=lambda _unit: None,
                committed=lambda _unit, receipt: receipts.append(receipt),
                failed=lambda _unit, why, _attempts: failures.append(why.message),
                retried=lambda _unit, why: failures.append(why.message),
                progressed=lambda _in_work: None,
            )
        finally:
            pool.close()
    replaced = receipts != [int(kernel.failed_once.read_text())]
    good = len(receipts) == 1 and replaced == (setting.device == "cuda")
    journal.write(phase, as_expected=good, process_replaced=replaced, failures=failures)


def gpu_tests(journal: Journal, phase: str, setting: Setting) -> None:
    """The tests marked `gpu`, from the files that have any: others need packages that a bare machine lacks.

    In this process, which has the libraries and is nobody else's.
    """
    del setting
    import pytest  # which a machine that only measures may lack

    files = [str(file) for file in sorted((REPOSITORY / "tests").glob("test_*.py")) if "mark.gpu" in file.read_text()]
    os.chdir(REPOSITORY)
    os.environ.update(_environment())
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = int(pytest.main([*"-q -m gpu -p no:cacheprovider -p no:faulthandler".split(), *files]))
    last = said.getvalue().strip().splitlines()[-1:] or [""]
    output = None if code == 0 else said.getvalue()[-6000:]
    journal.write(phase, exit_code=code, summary=last[0], output=output)


def _environment() -> dict[str, str]:
    """This process's, with the source tree ahead of what is installed."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}
