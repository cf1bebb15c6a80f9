"""What the tests share: an S3 server, stores of both kinds, a Ray cluster, a tiny model, manifests, and the CLI."""

import csv
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, Protocol

os.environ.pop("RAY_ADDRESS", None)  # whoever has a cluster of their own tests without it
# before numpy and torch are read: threads of tests side by side would wait for each other
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
gc.disable()  # while libraries and tests are loaded: of a million objects none is garbage

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import settings
from s3_server import S3Server, missing_programs, running_server

from batchgen.cli import main
from batchgen.dataset.dataset import Dataset
from batchgen.storage import Store, open_store

BIN = Path(sys.executable).parent
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # of processes that tests start; within, `datasets` would refuse S3, too

RowCells = Mapping[str, Any]


class WriteManifest(Protocol):
    """Writes rows as a manifest; the suffix of the name says the format."""

    def __call__(self, name: str, rows: Sequence[RowCells], /, **types: pa.DataType) -> Path: ...


class RunCli(Protocol):
    """Runs `batchgen` with these arguments, in a folder, with additions to the environment."""

    def __call__(
        self,
        *arguments: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        here: bool | None = None,
    ) -> subprocess.CompletedProcess[str]: ...


def go_without(reason: str) -> NoReturn:
    """Skip for a program that is missing here; in CI that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


# S3


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for the whole test session; where its programs are missing tests are skipped, in CI they fail."""
    if missing := missing_programs():
        go_without(f"the S3 server needs {', '.join(missing)}; .ci/install-system-packages installs them")
    with running_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_files(s3_server: S3Server) -> Any:
    """What empties the buckets, made once: each client reads half a second of botocore's tables."""
    return s3_filesystem(s3_server)


@pytest.fixture
def s3_bucket(s3_server: S3Server, s3_files: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of a fresh bucket, with the environment set so that everything finds it; emptied afterwards."""
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    bucket = f"tests-{uuid.uuid4().hex[:12]}"
    s3_server.create_bucket(bucket)
    yield f"s3://{bucket}"
    if found := s3_files.find(bucket):  # the server keeps all objects in memory for the whole session
        s3_files.rm(found)
    s3_files.rmdir(bucket)


def s3_filesystem(server: S3Server) -> Any:
    """An s3fs of the test's own, apart from the product's."""
    import s3fs

    return s3fs.S3FileSystem(
        key=server.access_key,
        secret=server.secret_key,
        endpoint_url=server.endpoint,
        client_kwargs={"region_name": server.region},
        skip_instance_cache=True,
        use_listings_cache=False,
    )


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty place for an output: a local folder, then a prefix of a bucket."""
    if request.param == "local":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3_bucket')}/some/prefix"


@pytest.fixture
def store(store_uri: str) -> Store:
    """An empty store of each kind.

    Each S3 server and bucket has options of its own, since stores of equal options share one file system.
    """
    return open_store(store_uri, _own_options(store_uri))


def _own_options(uri: str) -> dict[str, Any]:
    return {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]} if uri.startswith("s3://") else {}


@pytest.fixture
def begun(tmp_path: Path) -> Dataset:
    """A begun local output of layout files."""
    from test_commit import make_format  # which imports from here

    return Dataset.begin(open_store(str(tmp_path / "out")), make_format(), create=True)


@pytest.fixture
def local(begun: Dataset) -> Store:
    """Its store."""
    return begun.store


def pytest_collection_finish() -> None:
    """Later collections pass over what is loaded by now; each took most of a second, and reading a model has one."""
    gc.freeze()
    gc.enable()


# An example may take as long as it needs: on a busy machine time says nothing of the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses the session's Ray cluster or S3 server is marked so; files of slow tests come first."""
    servers = {"ray_address": pytest.mark.ray, "s3_server": pytest.mark.s3}
    slow: Counter[Path] = Counter()
    for item in items:
        for fixture in servers.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(servers[fixture])
        marks = {mark.name for mark in item.iter_markers()}
        slow[item.path] += 10 if "ray" in marks else not marks.isdisjoint({"slow", "s3"})
    items.sort(key=lambda item: -slow[item.path])


def pytest_configure(config: pytest.Config) -> None:
    """Files go to the processes of xdist in that order, not by how many tests they hold: the last ones are quick."""
    config.option.loadscopereorder = False
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        gc.enable()  # this one hands tests out, and collects none itself


# Ray


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """The address of one Ray cluster with room for one worker, or two of half a core; stopped at the session's end.

    A worker takes seconds of a core to start, so a test has one where it is not about two.
    """
    with running_ray("--num-cpus=1") as address:
        yield address


@contextmanager
def running_ray(*options: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """A Ray head of its own without GPUs; yields its address."""
    # sockets lie in it, whose paths may have 107 characters: pytest's own folders are too deep
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        port = free_port()
        head = ("--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false")
        with running_node(*head, "--node-ip-address=127.0.0.1", "--disable-usage-stats", *options, env=env):
            yield f"127.0.0.1:{port}"


@contextmanager
def running_node(
    *options: str, env: Mapping[str, str] | None = None, within: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """A node of a Ray cluster, which is stopped at the end; yields the process whose children are its daemons.

    `within` is a command that runs the one after it, in surroundings of its own.
    """
    command = [
        *within,
        str(BIN / "ray"),
        "start",
        "--block",
        "--num-gpus=0",
        "--include-log-monitor=false",  # drivers would have lines of it, and ours want none
        f"--object-store-memory={100 << 20}",
        *options,
    ]
    node = subprocess.Popen(
        command,
        env={**os.environ, **OFFLINE, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert node.stdout is not None
    lines = []
    for line in node.stdout:
        lines.append(line)
        if "Ray runtime started" in line:
            break
    else:
        pytest.fail("Ray did not start:\n" + "".join(lines[-20:]))
    try:
        yield node
    finally:
        node.terminate()  # a blocking start stops its own processes, and nobody else's
        with suppress(subprocess.TimeoutExpired):
            node.wait(20)
        node.kill()
        node.wait()


def workers_below(process: int) -> list[psutil.Process]:
    """Ray's processes with a worker of ours in them, of all that a process started."""
    children = psutil.Process(process).children(recursive=True)
    return [child for child in children if any("ray::WorkerActor" in word for word in (child.name(), *child.cmdline()))]


def wait_for(log: Path, text: str, *, process: subprocess.Popen[bytes] | None = None, seconds: float = 240) -> None:
    """Wait until a run has said something, and has not ended without it."""
    deadline = time.monotonic() + seconds
    while text not in log.read_text():
        ended = process is not None and process.poll() is not None
        assert not ended and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


# Models


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of a tiny Stable Diffusion 1.x with seeded random weights."""
    from tiny_models import build_sd1

    return build_sd1(tmp_path_factory.mktemp("model") / "tiny")


def write_model_configs(folder: Path, *, in_channels: int = 4, side: int = 64, extra: Mapping[str, Any] = {}) -> Path:
    """The files of a diffusers folder that are read before a model is loaded, and no weights."""
    files: dict[str, Mapping[str, Any]] = {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "scheduler": ["diffusers", "DDIMScheduler"],
            **extra,
        },
        "unet/config.json": {"sample_size": side // 8, "in_channels": in_channels},
        "text_encoder/config.json": {"num_hidden_layers": 3},
        "vae/config.json": {"block_out_channels": [1, 1, 1, 1]},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def model_configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can be validated against, not loaded: validation must not need weights."""
    return write_model_configs(tmp_path_factory.mktemp("model-configs") / "model")


# Manifests and the command line


@pytest.fixture
def write_manifest(tmp_path: Path) -> WriteManifest:
    """Writes rows to a file below the test's folder as Parquet, CSV or JSONL, by suffix."""

    def write(name: str, rows: Sequence[RowCells], /, **types: pa.DataType) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        names = list(dict.fromkeys(column for row in rows for column in row))
        match path.suffix:
            case ".parquet" | ".pq":
                arrays = [pa.array([row.get(column) for row in rows], types.get(column)) for column in names]
                pq.write_table(pa.table(arrays, names=names), path)
            case ".csv":
                with path.open("w", encoding="utf-8", newline="") as stream:
                    writer = csv.DictWriter(stream, names)
                    writer.writeheader()
                    writer.writerows(rows)
            case _:
                path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


# Commands that start no worker: called within the tests' process, which has their libraries loaded.
_WITHOUT_WORKERS = frozenset(
    "validate plan sweep manifest status verify retry select report export join explain".split()
)

HERE = ("--workers", "0")
"""Flags by which `run` and `score` start none either: for tests that are not about Ray."""


@pytest.fixture(scope="session")
def batchgen() -> RunCli:
    """Runs the command as from a shell.

    In a process of its own where it may start workers, its environment is set, or it is timed; `here` says otherwise.
    """

    def run(
        *arguments: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        here: bool | None = None,
    ) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        if here is None:
            alone = HERE in pairwise(words) or (words[:1] and words[0] in _WITHOUT_WORKERS)
            here = env is None and timeout is None and bool(alone)
        if here:
            assert env is None and timeout is None
            with chdir(cwd or Path.cwd()):
                return called(*words)
        return subprocess.run(
            [BIN / "batchgen", *words],
            cwd=cwd,
            env={**os.environ, **OFFLINE, **(env or {})},
            capture_output=True,
            text=True,
            timeout=300 if timeout is None else timeout,
            check=False,
        )

    return run


def called(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What a command says and ends with, called within this process; one that ends in a traceback fails the test."""
    words, before = [str(argument) for argument in arguments], signal.getsignal(signal.SIGTERM)
    try:
        done = CliRunner().invoke(main, words, prog_name="batchgen")
    finally:
        signal.signal(signal.SIGTERM, before)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        pytest.fail("".join(traceback.format_exception(done.exception)))
    assert "(unexpected;" not in done.output and "Traceback" not in done.output, done.output
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)
