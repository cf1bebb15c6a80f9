"""Manifests, images and model folders of strangers: whatever they hold is refused in a line, in seconds, or is fine."""

import ctypes
import http.server
import json
import os
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WriteManifest, write_model_configs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError, safe_open
from test_manifest import png, read
from test_validate import problems

from batchgen.embedded.a1111 import read_parameters
from batchgen.errors import CellError, InputError, ManifestProblems, PromptSyntaxError, WebError
from batchgen.generation.prompt_syntax import find_unsupported, parse_tags, parse_weights
from batchgen.generation.samplers import OPTIONS, option_problems
from batchgen.generation.unread import find_unread
from batchgen.images import _Room, decode
from batchgen.index import _PREFIX, Index
from batchgen.inputs import InputReader, Inputs
from batchgen.job import load_job
from batchgen.manifest.columns import COLUMNS
from batchgen.manifest.problems import ProblemLog
from batchgen.models.catalog import find_model
from batchgen.models.configs import read_index
from batchgen.models.headers import read_shapes
from batchgen.web import _is_near, fetch

FUZZ = settings(database=None, suppress_health_check=list(HealthCheck))

PLACES = st.sampled_from(
    "~nobody/x x/../../y / . .. // /dev/zero /dev/stdin fifo.png zero.png builtin builtin-x a@b github://a/b ftp://h/x "
    "webhdfs://h/x dir://a reference://a hf://a/b data:,x http://127.0.0.1/x http:// s3:// s4://b/x file:///dev/zero "
    "memory://x/y local:// git://x zip://a::b C:\\x".split()
) | st.sampled_from(
    ["x" * 300, "/".join(["y" * 200] * 40), "a\0b", "\ud800", " x", "${A}", "<lora:" * 2000, " " * 9000]
)
DEEP = st.integers(1, 2000).flatmap(
    lambda n: st.sampled_from(["[" * n + "]" * n, '{"a":' * n + "1" + "}" * n, "[" * n, '[{"path":' * n])
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -1, 0, 2**63, 1e308])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | PLACES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just("path"), inner, max_size=3)
    ),
    max_leaves=6,
)
CELLS = st.dictionaries(
    st.sampled_from(sorted(COLUMNS.keys() - {"num_inference_steps", "num_images_per_prompt"})) | st.text(max_size=5),
    JSON | PLACES | DEEP,
    max_size=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest's folder with what never ends, and what never begins."""
    folder = tmp_path_factory.mktemp("strangers")
    os.mkfifo(folder / "fifo.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    return folder


@pytest.mark.slow
@settings(FUZZ, max_examples=50)
@given(rows=st.lists(CELLS, min_size=1, max_size=20), raw=DEEP)
def test_any_cells(rows: list[dict[str, Any]], raw: str, folder: Path, model_configs: Path) -> None:
    """No cell ends in anything but a problem of its row, and none hides the last row's."""
    path = folder / "m.jsonl"
    lines = [json.dumps({"prompt": "a", **row}) for row in rows] + [f'{{"prompt": "a", "z": {raw}}}']
    path.write_text("\n".join([*lines, '{"prompt": "a", "num_inference_steps": 0}', ""]))
    with pytest.raises(ManifestProblems) as found:
        read(path, model_configs)
    log = found.value.log
    assert (len(lines) + 1, "num_inference_steps") in {(problem.row, problem.column) for problem in log.shown}
    assert all("\n" not in line and len(line) < 800 for line in log.lines())


@pytest.mark.slow
@settings(FUZZ, max_examples=200)
@given(options=st.dictionaries(st.sampled_from(sorted(set().union(*OPTIONS.values()))), JSON, max_size=3))
def test_any_options_of_a_scheduler(options: dict[str, Any]) -> None:
    """Values of any type; what passes JSON writes."""
    if not option_problems(options):
        json.dumps(options, allow_nan=False)


ODD = JSON | st.sampled_from([["os", "system"], ["diffusers", "Nope"], ["transformers", 5], [None, "x"], [[1]], 10**9])


@pytest.mark.slow
@settings(FUZZ, max_examples=200)
@given(
    file=st.sampled_from(["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"]),
    key=st.sampled_from(
        "_class_name scheduler unet vae safety_checker sample_size in_channels block_out_channels layers_per_block "
        "cross_attention_dim hidden_size num_hidden_layers".split()
    ),
    value=ODD,
    whole=st.none() | DEEP | st.sampled_from(["", "5", "[]", "null", '{"a": 1, "a": 2}']),
)
def test_any_folder_of_a_model(file: str, key: str, value: Any, whole: str | None) -> None:
    """Configs with anything in them: a model with numbers that models have, or a line that names file and key."""
    with tempfile.TemporaryDirectory() as name:
        place = write_model_configs(Path(name)) / file
        content = json.dumps({**json.loads(place.read_text()), key: value}) if whole is None else whole
        place.write_text(content)
        try:
            model = find_model(name)
        except InputError as error:
            assert str(error).startswith(f"model {name!r}") and "\n" not in str(error)
        else:
            assert max(model.width, model.height, *model.unet_widths, *model.unet_layers, model.text_width) <= 1 << 14


TENSORS = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__"]),
    JSON
    | st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "X", 5]),
            "shape": st.lists(st.integers(-1, 2**62), max_size=3) | JSON,
            "data_offsets": st.sampled_from([[0, 4], [4, 8], [0, 8], [], [0], [4, 0]]) | JSON,
        }
    ),
    max_size=3,
)


@settings(FUZZ, max_examples=200)
@given(header=TENSORS.map(json.dumps) | DEEP, size=st.integers(0, 12), length=st.none() | st.integers(0, 2**64 - 1))
def test_any_header_of_weights(header: str, size: int, length: int | None) -> None:
    """What is read the library reads likewise; it has other opinions only on what is refused here."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name, "x.safetensors")
        data = header.encode(errors="replace")
        file.write_bytes(struct.pack("<Q", len(data) if length is None else length) + data + bytes(size))
        try:
            shapes = read_shapes(file)
        except CellError:
            return
        with suppress(SafetensorError), safe_open(file, framework="np") as opened:
            assert shapes == {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118


FRAGMENTS = (
    'a/ /<lora:/</(/[/{/:/a:/AND /BREAK/ BREAK/1/./-__a/__/embedding:/--ar /::/a::1/\\/(a:/)/]/}/(a/[a/,/a:",/\t/'
    "AND a:.1 /a::1./:.1 /(:.1/a++/))/*".split("/")
)
FRAGMENTS += ["|", "{|", "[|", "{a|", "a|", "/"]


@pytest.mark.slow
@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_no_pattern_takes_longer_than_the_text(fragment: str) -> None:
    """Incident: 60,000 spaces, or half a tag as often, held `validate` for minutes. Ours take well under a second."""
    for text in (fragment * (40_000 // len(fragment)), "(a" + fragment * (40_000 // len(fragment)) + "x"):
        began = time.process_time()
        for syntax in ("plain", "a1111"):
            find_unread(text, syntax)
        if find_unsupported(text) is None:
            parse_weights(text)
        with suppress(PromptSyntaxError):
            parse_tags(text)
        read_parameters(f"a\n{text}")
        ProblemLog().add("file", 1, "column", text)
        assert time.process_time() - began < 4


def test_tags_and_breaks_are_what_they_were() -> None:
    """White space around tags and breaks, which the patterns see from its first character on."""
    rest, tags = parse_tags("a  <lora:x:1> \t<lyco:y> b > <hypernet:z:.5>  ")
    assert (rest, [tag.name for tag in tags]) == ("a b >", ["x", "y", "z"])
    assert [getattr(piece, "text", None) for piece in parse_weights("a  BREAK  b BREAKc")] == ["a", None, "b BREAKc"]
    assert "nests more than" in (find_unsupported("(" * 200) or "")
    assert read_parameters('a\n-Steps: 20, Sampler: "Euler, a", CFG scale: 7') is not None


def test_what_swells(tmp_path: Path, model_configs: Path) -> None:
    """A Parquet file of some KiB whose 60 rows say the same 30 MB; a line without an end; too many columns."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 60, pa.int32()), ["x" * 30_000_000])
    swollen = pa.table({"prompt": texts, "n": range(60)})
    pq.write_table(swollen, tmp_path / "m.parquet", compression="zstd", store_schema=False)
    before = psutil.Process().memory_info().rss
    (found,) = problems(tmp_path / "m.parquet", model_configs)
    assert (found.row, found.column) == (1, "prompt") and "30,000,000 bytes" in found.message
    assert psutil.Process().memory_info().rss - before < 300 << 20
    (tmp_path / "m.csv").write_text("prompt," + ",".join(f"c{n}" for n in range(5000)) + "\na" + "," * 5000 + "\n")
    assert "5,001 columns; at most 1,000" in problems(tmp_path / "m.csv", model_configs)[0].message
    (tmp_path / "n.csv").write_text("prompt,n\n" + "a" * 60_000 + ",1\n")
    assert "at most 50,000" in problems(tmp_path / "n.csv", model_configs)[0].message
    read(tmp_path / "n.csv", model_configs, inputs=Inputs(prompt_characters=60_000))


def test_where_cells_may_point(write_manifest: WriteManifest, model_configs: Path, tmp_path: Path) -> None:
    """Below the manifest's folder and the job's roots, links followed; each refusal names the key that would let it."""
    for place in ("in/i.png", "out/o.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(png())
    (tmp_path / "in/link.png").symlink_to(tmp_path / "out/o.png")
    rows = [{"prompt": "a", "image": one} for one in ("i.png", "link.png", "../out/o.png", str(tmp_path / "out/o.png"))]
    path = write_manifest("in/m.jsonl", rows)
    found = problems(path, model_configs)
    assert [problem.row for problem in found] == [2, 3] and f'roots = ["{tmp_path}/out"]' in found[0].message
    assert len(read(path, model_configs, inputs=Inputs(roots=(str(tmp_path / "out"),)))[0]) == 4
    (tmp_path / "job.toml").write_text('manifest = "in/m.jsonl"\n[inputs]\nroots = ["out"]\nschemes = ["local"]\n')
    assert load_job(str(tmp_path / "job.toml")).inputs == Inputs(roots=(str(tmp_path / "out"),), schemes=("local",))
    (tmp_path / "job.toml").write_text('manifest = "in/m.jsonl"\n[inputs]\nschemes = ["gopher"]\n')
    with pytest.raises(InputError, match="gopher"):
        load_job(str(tmp_path / "job.toml"))
    web = write_manifest("in/w.jsonl", [{"prompt": "a", "image": "https://u:geheim@host/x.png?X-Amz-Signature=geheim"}])
    (refused,) = problems(web, model_configs)
    assert 'schemes = ["local", "s3", "https"]' in refused.message and "geheim" not in str(refused)
    near_by = write_manifest("in/n.jsonl", [{"prompt": "a", "image": "http://127.0.0.1/x.png"}])
    (near,) = problems(near_by, model_configs, inputs=Inputs(schemes=("http",)))
    assert "address of this machine" in near.message


@contextmanager
def serving(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server on this machine, and its URI."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):
                answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_the_web(tmp_path: Path, model_configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that drip, are too large, lead elsewhere, want a password or come late; a manifest of the job's owner."""
    monkeypatch.setattr("batchgen.web._PAUSES", (0.01, 0.04))
    seen: list[str | None] = []
    asked: list[str] = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers.get("Authorization"))
        asked.append(handler.path)
        match handler.path.partition("?")[0]:
            case "/drip":
                handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 9999\r\n\r\n")
                while True:
                    handler.wfile.write(b"x")
                    time.sleep(0.05)
            case "/round":
                handler.wfile.write(b"HTTP/1.0 302 Found\r\nLocation: /round\r\n\r\n")
            case "/hop":
                time.sleep(0.2)
                handler.wfile.write(b"HTTP/1.0 302 Found\r\n")
                time.sleep(0.2)
                handler.wfile.write(b"Location: /hop\r\n\r\n")
            case "/away":
                handler.wfile.write(b"HTTP/1.0 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n")
            case "/busy":
                handler.wfile.write(b"HTTP/1.0 429 Too Many Requests\r\n\r\n")
            case "/broken":
                handler.wfile.write(b"HTTP/1.0 500 Internal Server Error\r\n\r\n")
            case "/late" if asked.count("/late") > 1:
                handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nhere")
            case "/late":
                handler.wfile.write(b"HTTP/1.0 503 Service Unavailable\r\n\r\n")
            case "/m.csv":
                handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nprompt,image\na,\nb,b.png\n")
            case _:
                handler.wfile.write(b"HTTP/1.0 404 Not Found\r\n\r\n")

    with serving(answer) as host:
        began = time.monotonic()
        for path, most, seconds, said in (
            ("drip", 1 << 20, 0.5, "longer than 0.5 seconds"),
            ("hop", 10, 1, "longer than 1 seconds"),
            ("drip", 10, 5, "larger than"),
            ("round", 10, 5, "one place to the next"),
            ("away", 10, 5, "not asked"),
            ("absent", 10, 5, "404"),
            ("busy", 10, 5, "429 Too Many Requests"),
            ("broken", 10, 5, "500 Internal Server Error"),
        ):
            with pytest.raises(WebError if path in ("busy", "broken") else InputError, match=said):
                fetch(f"http://{host}/{path}", most=most, seconds=seconds, anywhere=True)
        with pytest.raises(InputError, match="address of this machine"):
            fetch(f"http://{host}/m.csv", most=100, seconds=5)
        assert fetch(f"http://{host}/late", most=10, seconds=5, anywhere=True) == b"here"
        assert [asked.count(f"/{path}") for path in ("absent", "busy", "broken", "late")] == [1, 3, 3, 2]
        assert time.monotonic() - began < 20
        assert fetch(f"http://user:geheim@{host}/m.csv", most=100, seconds=5, anywhere=True).startswith(b"prompt")
        assert seen[-1] == "Basic dXNlcjpnZWhlaW0="
        (found,) = problems(f"http://{host}/m.csv?sig=geheim", model_configs)
        assert (found.row, found.column) == (2, "image") and "geheim" not in str(found)
    with pytest.raises(WebError):
        fetch(f"http://{host}/m.csv", most=100, seconds=5, anywhere=True)


@contextmanager
def silent_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Names are asked for, once a second and once in all, at a socket of this test, which never answers."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "__res_state"):
        pytest.skip("another C library than glibc keeps its resolver's state elsewhere")
    libc.__res_state.restype = ctypes.c_void_p
    original = socket.getaddrinfo
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.settimeout(5)
        server = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", silent.getsockname()[1], b"\x7f\0\0\1")

        def asking(*args: Any, **kwargs: Any) -> Any:
            """As `getaddrinfo`; glibc's `struct __res_state` is a thread's own."""
            libc.__res_init()
            state = libc.__res_state()
            for offset in (0, 4, 16):  # seconds, tries, servers
                ctypes.c_int.from_address(state + offset).value = 1
            ctypes.memmove(state + 20, server, len(server))  # the first server
            return original(*args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", asking)
        yield silent


@pytest.mark.slow
def test_names_that_nobody_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Incident: `seconds` began after the look-up. Those that are left behind are few, however many hosts are dead."""
    monkeypatch.setattr("batchgen.web._PAUSES", ())
    monkeypatch.setattr("batchgen.web._seats", threading.BoundedSemaphore(3))
    reader = InputReader(Inputs(seconds=0.2))

    def refused(number: int) -> str:
        with pytest.raises(InputError) as caught:
            reader.read(f"http://host{number}.invalid/a.png")
        return str(caught.value)

    def looking() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("look up host")]

    with silent_resolver(monkeypatch) as silent:
        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(refused, range(8)))
        assert all("longer than 0.2 seconds" in one for one in said)
        assert b"invalid" in silent.recv(512)
        left = looking()
        assert 0 < len(left) <= 3
        assert refused(0) and "not asked again" in refused(0)
        for thread in left:
            thread.join()
    assert not looking()


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 127.9.9.9 ::1 0.0.0.0 :: 169.254.169.254 fe80::1 fd00:ec2::254 100.100.100.200 168.63.129.16 "
    "::ffff:127.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 2002:7f00:1:: 224.0.0.1".split(),
)
def test_addresses_that_are_not_asked(address: str) -> None:
    assert _is_near(address)


def test_addresses_that_are_asked() -> None:
    """Of others, and none of this machine's own."""
    assert not _is_near("93.184.215.14") and not _is_near("2606:2800:21f:cb07:6820:80da:af6b:8b2c")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        with suppress(OSError):
            probe.connect(("192.0.2.1", 9))
        assert _is_near(probe.getsockname()[0])


def test_formats_and_room(tmp_path: Path) -> None:
    """An EPS under any name starts nothing; images in work at once have no more pixels than one may have."""
    (tmp_path / "ran").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="no image format that is read"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="at most 100 pixels"):
        decode(png(20, 20), 100)
    room, now, peak, lock = _Room(), [0], [0], threading.Lock()

    def work(_: int) -> None:
        with room.taken(40, 100):
            with lock:
                now[0] += 1
                peak[0] = max(peak[0], now[0])
            time.sleep(0.01)
            with lock:
                now[0] -= 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(32)))
    assert peak[0] == 2
    assert isinstance(decode(png()), Image.Image)


def test_parts_of_a_model(tiny_model: Path, tmp_path: Path) -> None:
    """A part that is no class, or is missing: refused by name; one that is not among the usual is looked up."""
    copy = shutil.copytree(tiny_model, tmp_path / "model")
    index = json.loads((copy / "model_index.json").read_text())
    for part, said, why in (
        ("scheduler", ["os", "system"], "no class of"),
        ("unet", ["diffusers", "NoSuchModel"], "no class of"),
        ("vae", [None, None], "names no vae"),
        ("tokenizer", 5, r"wants \[library, class\]"),
    ):
        (copy / "model_index.json").write_text(json.dumps({**index, part: said}))
        with pytest.raises(InputError, match=why) as error:
            find_model(str(copy))
        assert part in str(error.value)
    (copy / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderTiny"]}))
    assert read_index(copy)[1]["vae"] == "AutoencoderTiny"
    (copy / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(InputError, match="tokenizer is missing or empty"):
        find_model(str(copy))
    assert find_model(str(tiny_model)).unet_widths


def test_indexes_of_killed_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next index removes what nobody holds, and nothing else."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{_PREFIX}left"
    left.mkdir()
    (left / "rows.sqlite").write_text("x")
    os.utime(left, (1, 1))
    with Index():
        assert not left.exists()
        (live,) = tmp_path.glob(f"{_PREFIX}*")
        os.utime(live, (1, 1))
        with Index():
            assert live.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_url_is_said(tmp_path: Path) -> None:
    """Incident: a bracket in a URL ended the check as a mistake of the program, and hid all other problems."""
    with pytest.raises(InputError, match="is no URL"):
        fetch("http://[x/y.png", most=1, seconds=1)
