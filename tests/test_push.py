"""A report pushed to a hub: the folder that the hub's own client sends, to a server that speaks what it asks for."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import RunCli
from test_report import GRID, make_output


class Hub(ThreadingHTTPServer):
    """Spaces as files by path; what stands in the last commit counts."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {"old.txt": b"of an earlier report"}
        self.created: list[Any] = []
        self.token = "Bearer hf_" + "x" * 34

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        if "/tree/main" not in self.path:
            return self._answer({"id": "me/compare", "sha": "0" * 40, "sdk": "static"})
        found = [{"type": "file", "path": p, "size": len(d), "oid": "0" * 40} for p, d in self.server.files.items()]
        return self._answer(found)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != self.server.token:
            return self._answer({"error": "Invalid credentials"}, 401)
        match self.path.rsplit("/", 2):
            case [*_, "repos", "create"]:
                self.server.created.append(json.loads(body))
                return self._answer({"url": f"{self.server.address}/spaces/me/compare", "id": "me/compare"})
            case [*_, "preupload", "main"]:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                return self._answer({"files": modes})
            case [*_, "commit", "main"]:
                for line in map(json.loads, body.decode().splitlines()):
                    if line["key"] == "file":
                        self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    elif line["key"] == "deletedFile":
                        del self.server.files[line["value"]["path"]]
                return self._answer(
                    {"commitUrl": f"{self.server.address}/spaces/me/compare/commit/1", "commitOid": "1" * 40}
                )
            case _:
                return self._answer({"warnings": [], "errors": []})

    def _answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing: the test says what went wrong."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_report_is_pushed_to_a_static_space(tmp_path: Path, hub: Hub, batchgen: RunCli) -> None:
    """A card that says static, the page, and the images themselves, since a Space is no output; what was there goes."""
    output = make_output(tmp_path / "out", GRID[:4])
    env = {"HF_ENDPOINT": hub.address, "HF_TOKEN": hub.token.split()[1], "HF_HUB_OFFLINE": "0"}
    env |= {"HF_HUB_DISABLE_XET": "1"}  # the other way of uploading is a protocol of its own
    done = batchgen("report", output, "--push", "me/compare", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.address}/spaces/me/compare"
    (asked,) = hub.created
    assert (asked["name"], asked["organization"], asked["sdk"], asked["type"]) == ("compare", "me", "static", "space")
    assert asked["visibility"] == "private"
    assert {"index.html", "report.js", "data/index.js", "thumbs/000.webp", "sheet.png"} <= hub.files.keys()
    assert len([name for name in hub.files if name.startswith("images/")]) == 4
    assert b"sdk: static" in hub.files["README.md"] and "old.txt" not in hub.files
    assert not (output / "report").exists()

    done = batchgen("report", output, "--push", "me/compare", env={**env, "HF_TOKEN": "hf_other"})
    assert done.returncode == 4 and "HF_TOKEN" in done.stderr and len(done.stderr.splitlines()) == 1
    for arguments, words in ((["--push", "compare"], "OWNER/NAME"), (["--push", "a/b", "-o", "x"], "leave one")):
        done = batchgen("report", output, *arguments, env=env)
        assert done.returncode == 2 and words in done.stderr
