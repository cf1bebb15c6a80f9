"""The store's promises on a folder and on a real S3 server: create-only, whole or not at all, errors with places."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from conftest import RunCli, free_port, s3_filesystem
from s3_faults import Fault, Kind, fault_proxy
from s3_server import S3Server

from batchgen.errors import AlreadyExists, InputError, NotFound, StoreError, StoreRefused
from batchgen.inputs import InputReader, Inputs
from batchgen.manifest.files import folder_of
from batchgen.places import join
from batchgen.reading import expand, look_at_input, open_input, read_input
from batchgen.storage import PROBE_KEY, Entry, Store, open_store, probe, remote, throttle


def test_read_gives_what_was_written(store: Store) -> None:
    """Bytes come back as they went in, keys with spaces, plus signs and unicode included."""
    for key in ("a", "data/shard/attempt/x.png", "data/with space/ü+1 %20#.png"):
        store.write(key, key.encode() * 1000)
        assert store.read(key) == key.encode() * 1000
        assert store.size(key) == len(key.encode()) * 1000
        assert store.read_part(key, 3, 10) == (key.encode() * 1000)[3:10]
        assert store.read_part(key, 3, 10**6) == (key.encode() * 1000)[3:] and store.read_part(key, 10**6, 10**7) == b""
        with pytest.raises(AlreadyExists):
            store.create(key, b"other")


def test_create_is_refused_on_what_exists(store: Store) -> None:
    """The first bytes stay; the refusal names the place."""
    store.create("data/x", b"first")
    with pytest.raises(AlreadyExists, match=r"data/x"):
        store.create("data/x", b"second")
    assert store.read("data/x") == b"first"


def test_one_of_many_creates_wins(store: Store) -> None:
    """Twelve threads create one key at the same moment: one wins, eleven are refused, the winner's bytes stay."""
    barrier = Barrier(12)

    def create(number: int) -> bool:
        barrier.wait()
        try:
            store.create("data/race", b"%d" % number)
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        won = list(pool.map(create, range(12)))
    assert sum(won) == 1
    assert store.read("data/race") == b"%d" % won.index(True)
    assert store.names("data") == ["race"]


def test_write_replaces(store: Store) -> None:
    """A write over an object leaves the new bytes, and nothing else beside them."""
    store.create("a/x", b"old")
    store.write("a/x", b"new")
    assert store.read("a/x") == b"new"
    assert store.names("a") == ["x"]


def test_names_and_entries(store: Store) -> None:
    """Names are those directly below, sorted, folders once; entries are all objects with their sizes."""
    for key, size in (("data/b/1", 10), ("data/b/2", 20), ("data/a", 1), ("data/bb", 2), ("other", 3)):
        store.write(key, b"x" * size)
    assert store.names("data") == ["a", "b", "bb"]
    assert sorted(store.names("")) == ["data", "other"]
    assert sorted((e.key, e.size) for e in store.entries("data/b")) == [("data/b/1", 10), ("data/b/2", 20)]
    assert len(list(store.entries(""))) == 5


def test_nothing_there(store: Store) -> None:
    """An empty place lists as empty, reads are `NotFound`, and a delete of nothing is no error."""
    assert store.names("data") == []
    assert list(store.entries("data")) == []
    for look in (store.read, store.size, lambda key: store.read_part(key, 0, 1)):
        with pytest.raises(NotFound, match="absent"):
            look("data/absent")
    store.delete("data/absent")
    store.write("data/x", b"x")
    store.delete("data/x")
    assert store.names("data") == []
    with pytest.raises(NotFound):
        store.read("data/x")


def test_a_deleted_key_can_be_created_again(store: Store) -> None:
    """Create-only means: not while it is there."""
    store.create("x", b"1")
    store.delete("x")
    store.create("x", b"2")
    assert store.read("x") == b"2"


def test_probe_leaves_one_object(store: Store) -> None:
    """The probe may run any number of times; it passes on both stores, and needs no right to delete."""
    probe(store)
    probe(store)
    assert [entry.key for entry in store.entries("")] == [PROBE_KEY]


def test_probe_refuses_a_store_that_ignores_the_condition() -> None:
    """DESIGN: a store that overwrites on create is refused."""
    with pytest.raises(StoreError, match="use another store"):
        probe(_Overwriting())


class _Overwriting:
    """A store as some S3 look-alikes are: a create is a write."""

    uri = "lax://store"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def read(self, key: str) -> bytes:
        return self.objects[key]

    def read_part(self, key: str, start: int, end: int) -> bytes:
        return self.objects[key][start:end]

    def size(self, key: str) -> int:
        return len(self.objects[key])

    def create(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def write(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def names(self, prefix: str) -> list[str]:
        return sorted(self.objects)

    def entries(self, prefix: str) -> Iterator[Entry]:
        yield from (Entry(key=key, size=len(data)) for key, data in self.objects.items())

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)


def test_a_reader_never_sees_half(tmp_path: Path) -> None:
    """Local writes are whole or not at all: while one object is replaced again and again, every read is one version."""
    store = open_store(str(tmp_path))
    versions = [bytes([65 + n]) * 2_000_000 for n in range(2)]
    store.write("x", versions[0])

    def write_again_and_again() -> None:
        for number in range(20):
            store.write("x", versions[number % 2])

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_again_and_again)
        while not writing.done():
            assert store.read("x") in versions
        writing.result()


def test_local_errors_name_the_place(tmp_path: Path) -> None:
    """A file where a folder should be, a folder where a file should be: one line with the path."""
    (tmp_path / "file").write_text("x")
    for action in (
        lambda: open_store(str(tmp_path / "file")).write("a/b", b"x"),
        lambda: open_store(str(tmp_path)).read(""),
        lambda: open_store(str(tmp_path / "file")).create("a", b"x"),
    ):
        with pytest.raises(StoreError) as error:
            action()
        assert str(tmp_path) in str(error.value)
        assert len(str(error.value).splitlines()) == 1


def test_walking_a_folder_that_changes(tmp_path: Path) -> None:
    """`verify` may look on while a run writes: files that vanish between listing and looking are no error."""
    store = open_store(str(tmp_path))
    for number in range(20):
        store.write(f"data/s/{number}", b"x")
    seen = []
    for entry in store.entries("data"):
        seen.append(entry.key)
        for number in range(20):
            store.delete(f"data/s/{number}")
    assert len(seen) == 1


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    """Permissions follow the umask, not the 0600 of temporary files: datasets are shared."""
    open_store(str(tmp_path)).write("x", b"x")
    plain = tmp_path / "plain"
    plain.write_bytes(b"x")
    assert (tmp_path / "x").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    ("base", "relative", "expected"),
    [
        ("/a/b", "c.png", "/a/b/c.png"),
        ("/a/b", "../c.png", "/a/c.png"),
        ("/a/b", "/c.png", "/c.png"),
        ("s3://bucket/a", "c.png", "s3://bucket/a/c.png"),
        ("s3://bucket", "c.png", "s3://bucket/c.png"),
        ("s3://bucket/a", "s3://other/c.png", "s3://other/c.png"),
        ("s3://bucket/a", "s3://bucket//b//../c.png", "s3://bucket//b//../c.png"),
        ("s3://bucket/a/b", "../c/./d//e.png", "s3://bucket/a/c/d/e.png"),
        ("s3://bucket/a", "../../../c.png", "s3://bucket/c.png"),
        ("s3://bucket/a//b", "c.png", "s3://bucket/a//b/c.png"),
        ("s3://bucket/a//b", "../c.png", "s3://bucket/a//c.png"),
        ("s3://bucket/a/", "../c.png", "s3://bucket/a/c.png"),
        ("/a", "https://host/c.png", "https://host/c.png"),
    ],
)
def test_join(base: str, relative: str, expected: str) -> None:
    """Relative paths start from the folder of what names them and stay in its bucket; absolute ones and URIs stay."""
    assert join(base, relative) == expected


def test_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a folder (of the suffixes, sorted, nothing hidden), and a glob; nothing there is an empty list."""
    for name in ("b.csv", "a.csv", "sub/c.csv", "x.txt", ".hidden/d.csv", ".e.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [str(tmp_path / name) for name in ("a.csv", "b.csv", "sub/c.csv")]
    assert expand(str(tmp_path), [".csv"]) == names
    assert expand(f"{tmp_path}/", [".csv"]) == names
    assert expand(f"{tmp_path}/?.csv", [".csv"]) == names[:2]
    assert expand(names[0], [".csv"]) == names[:1]
    assert expand(str(tmp_path / "absent.csv"), [".csv"]) == []
    assert expand(f"file://{tmp_path}", [".csv"]) == names


def test_expand_in_a_hidden_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden means hidden below the folder: a relative folder works from below ~/.cache, too."""
    folder = tmp_path / "x" / ".cache" / "work" / "m"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("x")
    monkeypatch.chdir(folder.parent)
    assert [Path(found).name for found in expand("m", [".csv"])] == ["a.csv"]


def test_a_file_with_brackets_in_its_name(tmp_path: Path) -> None:
    """A file that is there is that file, whatever a glob would make of its name."""
    path = tmp_path / "prompts [v1].csv"
    path.write_text("x")
    assert expand(str(path), [".csv"]) == [str(path)]


def test_inputs_of_both_kinds(store_uri: str, tmp_path: Path) -> None:
    """Inputs are read by URI, streamed and seekable; what is not there is `NotFound` with the URI."""
    open_store(store_uri).write("in/x.csv", b"0123456789")
    uri = f"{store_uri}/in/x.csv"
    assert read_input(uri, most=10) == b"0123456789"
    with open_input(uri) as stream:
        stream.seek(5)
        assert stream.read(2) == b"56"
    assert expand(f"{store_uri}/in", [".csv"]) == [uri]
    assert expand(f"{store_uri}/in/*.csv", [".csv"]) == [uri]
    with pytest.raises(NotFound, match=r"absent\.csv"):
        read_input(f"{store_uri}/in/absent.csv", most=10)


# S3 alone


@pytest.mark.s3
def test_keys_are_keys(s3_bucket: str) -> None:
    """A manifest below a prefix with an empty name in it, found by its name, folder or glob, finds its images."""
    store = open_store(s3_bucket)
    for key in ("set//m/up.csv", "set//images/a.png", "set/images/a.png"):
        store.write(key, key.encode())
    for source in ("set//m/up.csv", "set//m", "set//m/", "set//m/*.csv"):
        (manifest,) = expand(f"{s3_bucket}/{source}", [".csv"])
        assert read_input(manifest, most=99) == b"set//m/up.csv"
        assert read_input(join(folder_of(manifest), "../images/a.png"), most=99) == b"set//images/a.png"
        assert read_input(join(folder_of(manifest), "../../images/a.png"), most=99) == b"set/images/a.png"


def in_child(uri: str, env: dict[str, str]) -> tuple[str, float]:
    """What a quick look and a probe say in a process with this environment, and after how many seconds."""
    script = (
        "import sys, time\n"
        "from batchgen.storage import open_store, probe\n"
        "from batchgen.errors import StoreError\n"
        "start = time.monotonic()\n"
        "try:\n"
        "    store = open_store(sys.argv[1], quick=True); store.names('.batchgen'); probe(store); said = 'fine'\n"
        "except StoreError as error:\n"
        "    said = f'{type(error).__name__}: {error}'\n"
        "print(time.monotonic() - start); print(said)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, uri], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    seconds, said = done.stdout.split("\n", 1)
    return said.rstrip("\n"), float(seconds)


@pytest.mark.s3
def test_s3_trouble_shows_within_seconds(s3_bucket: str, s3_server: S3Server) -> None:
    """Issue 2, point 11: wrong keys, missing bucket, closed port: one line with the place, within 8 seconds."""
    import os

    env = dict(os.environ)
    assert in_child(f"{s3_bucket}/x", env)[0] == "fine"
    cases = [
        (f"{s3_bucket}/x", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "denied"),
        (f"{s3_bucket}/x", {"AWS_ACCESS_KEY_ID": "nobody"}, "denied"),
        ("s3://no-such-place-here/x", {}, "no bucket 'no-such-place-here'"),
        (f"{s3_bucket}/x", {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}, "onnect"),
    ]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda case: in_child(case[0], {**env, **case[1]}), cases))
    for (uri, _, part), (said, seconds) in zip(cases, found, strict=True):
        assert part in said
        assert uri.split("/")[2] in said
        assert "\n" not in said
        assert seconds < 8


@pytest.mark.s3
def test_a_bucket_called_bucket(s3_bucket: str, s3_server: S3Server) -> None:
    """A fresh place whose name holds the word "bucket" is empty, not a missing bucket (as in jobs/nightly.toml)."""
    store = open_store(f"{s3_bucket}/my-bucket-of-images", {"endpoint_url": s3_server.endpoint})
    assert store.names("data") == []
    probe(store)


@pytest.mark.s3
def test_a_folder_is_what_is_in_it(s3_bucket: str, s3_server: S3Server) -> None:
    """Prefixes that share their beginning do not mix: data/ab is not below data/a."""
    store = open_store(s3_bucket, {"endpoint_url": s3_server.endpoint})
    store.write("data/a/1", b"x")
    store.write("data/ab/2", b"x")
    assert store.names("data/a") == ["1"]
    assert [entry.key for entry in store.entries("data/a")] == ["data/a/1"]


@pytest.mark.s3
def test_objects_are_written_in_one_request(s3_bucket: str, s3_server: S3Server) -> None:
    """DESIGN: no commit by multipart upload, where servers ignore the condition; 101 MB is where s3fs goes over."""
    with fault_proxy(s3_server, []) as proxy:
        store = open_store(s3_bucket, {"endpoint_url": proxy.server.endpoint})
        store.create("large", bytes(101 << 20))
        with pytest.raises(AlreadyExists):
            store.create("large", bytes(101 << 20))
        assert {request.method for request in proxy.requests if "large" in request.key} == {"PUT"}
    assert s3_filesystem(s3_server).size(f"{s3_bucket}/large") == 101 << 20


@pytest.mark.s3
def test_a_patient_store_outlasts_faults(s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each kind for one key: a read and a create end well; an outage ends, and says how often it was tried."""
    monkeypatch.setattr(throttle, "_FIRST_PAUSE", 0.02)
    faults = [
        Fault(kind=Kind.UNAVAILABLE, times=2),
        Fault(kind=Kind.ERROR, status=500, code="InternalError"),
        Fault(kind=Kind.ERROR, status=400, code="RequestTimeout"),
        Fault(kind=Kind.RESET, method="PUT", after_bytes=60_000),
        Fault(kind=Kind.RESET, method="GET", after_bytes=60_000),
        Fault(kind=Kind.TRUNCATED, method="GET", key="*/x", after_bytes=60_000),
        Fault(kind=Kind.TRUNCATED, method="GET", key="tests-????????????", after_bytes=60),  # a listing
        Fault(kind=Kind.DELAY, seconds=0.2),
    ]
    data = bytes(range(256)) * 500
    with fault_proxy(s3_server, faults) as proxy:
        store = open_store(s3_bucket, {"endpoint_url": proxy.server.endpoint})
        store.create("x", data)
        assert store.read("x") == data
        assert store.names("") == ["x"]
        assert sum(request.fault is not None for request in proxy.requests) == 9
        with pytest.raises(AlreadyExists):
            store.create("x", data)
    with fault_proxy(s3_server, [Fault(kind=Kind.UNAVAILABLE, times=None)]) as proxy:
        monkeypatch.setattr(throttle, "PATIENCE", 0.3)
        store = open_store(s3_bucket, {"endpoint_url": proxy.server.endpoint})
        with pytest.raises(StoreError, match=r"x: .*; tried \d+ times"):
            store.read("x")
        assert len(proxy.requests) >= throttle.LEAST_TRIES


@pytest.fixture
def own_client() -> Iterator[None]:
    """Stores without options, as of inputs, share one client, which belongs to the server of the test before."""
    for cached in (remote._filesystem, remote._throttle):
        cached.cache_clear()
    yield
    for cached in (remote._filesystem, remote._throttle):
        cached.cache_clear()


@pytest.mark.s3
def test_images_of_cells_outlast_faults(
    s3_bucket: str, s3_server: S3Server, s3_files: Any, own_client: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Incident: retries below the throttle hid from it that images were asked for too fast."""
    monkeypatch.setattr(throttle, "_FIRST_PAUSE", 0.02)
    faults = [
        Fault(kind=Kind.UNAVAILABLE, times=6),
        Fault(kind=Kind.RESET, method="GET", times=2, after_bytes=600),
        Fault(kind=Kind.TRUNCATED, method="GET", times=2, after_bytes=600),
        Fault(kind=Kind.UNAVAILABLE, method="HEAD", times=2),
    ]
    odd = f"{s3_bucket}/in//[1] ü+%20#?.png"
    images = {uri: uri.encode() * 50 for uri in [odd, *(f"{s3_bucket}/in/{number}.png" for number in range(40))]}
    for uri, data in images.items():
        s3_files.pipe_file(uri, data)
    s3_files.pipe_file(f"{s3_bucket}/large.png", bytes(5 << 20))
    s3_files.pipe_file(f"{s3_bucket}/empty.png", b"")
    limits: list[float] = []
    reader = InputReader(Inputs(image_mib=1))

    def read(uri: str) -> bytes:
        data = reader.read(uri.replace("s3://", "s3a://"))
        limits.append(remote._throttle(remote._Frozen()).limiter.limit)
        return data

    with fault_proxy(s3_server, faults) as proxy, ThreadPoolExecutor(16) as pool:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.server.endpoint)
        assert list(pool.map(read, images)) == list(images.values())
        assert min(limits) <= throttle.AT_ONCE / 2 and limits[-1] > min(limits)
        assert look_at_input(odd).size == len(images[odd])
        assert sum(request.fault is not None for request in proxy.requests) == 12
        assert reader.read(f"{s3_bucket}/empty.png") == b""
        with pytest.raises(InputError, match=r"large\.png is larger than 1 MiB"):
            reader.read(f"{s3_bucket}/large.png")
        assert proxy.requests[-1].part == f"bytes=0-{1 << 20}"
        for place, error in (("no such?.png", NotFound), ("", StoreError)):
            with pytest.raises(error, match=re.escape(f"{s3_bucket}/{place}: ")):
                reader.read(f"{s3_bucket}/{place}")
    s3_files.rm_file(odd)  # which the fixture would take for a pattern


@pytest.mark.s3
@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (400, "ExpiredToken", "the keys have expired; renew them"),
        (403, "InvalidAccessKeyId", "check credentials"),
        (403, "RequestTimeTooSkewed", "the clock of this machine is wrong"),
        (403, "AccessDenied", "access denied"),
        (507, "InsufficientStorage", "free some space"),
    ],
)
def test_what_somebody_must_see_to_is_not_tried_again(
    s3_bucket: str, s3_server: S3Server, status: int, code: str, said: str
) -> None:
    """Keys that ran out in the middle, a prefix that turned read-only, a quota: one request each, and what to do."""
    with fault_proxy(s3_server, [Fault(kind=Kind.ERROR, times=None, status=status, code=code)]) as proxy:
        store = open_store(s3_bucket, {"endpoint_url": proxy.server.endpoint})
        requests: list[Callable[[], object]] = [
            lambda: store.create("a/x", b"x"),
            lambda: store.read("a/x"),
            lambda: store.names("a"),
        ]
        for number, request in enumerate(requests, 1):
            with pytest.raises(StoreRefused, match=f"a.*{said}"):
                request()
            assert len(proxy.requests) == number


@pytest.mark.s3
def test_the_run_fails_in_one_line(s3_bucket: str, tmp_path: Path, model_configs: Path, batchgen: RunCli) -> None:
    """From the command line: a wrong secret ends in exit 4 with one line, before the manifest or a model is read."""
    (tmp_path / "m.jsonl").write_text('{"prompt": "a"}\n')
    start = time.monotonic()
    done = batchgen(
        "run", tmp_path / "m.jsonl", "--output", f"{s3_bucket}/x", "--model", model_configs,
        env={"AWS_SECRET_ACCESS_KEY": "wrong"},
    )  # fmt: skip
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "denied" in done.stderr
    assert time.monotonic() - start < 12
