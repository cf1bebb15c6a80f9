"""Places that were hardly meant as they are written are refused wherever one is named; no folder is made of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli, WriteManifest
from test_manifest import png, read
from test_validate import problems

from batchgen.errors import InputError
from batchgen.job import load_job
from batchgen.models.catalog import find_model
from batchgen.places import join, local_path, misspelling
from batchgen.storage import open_store

MEANT = {
    "s3:/b/x": "s3://b/x",
    "s3:b/x": "s3://b/x",
    "s3//b/x": "s3://b/x",
    "S3://b/x": "s3://b/x",
    "s3:///b/x": "s3://b/x",
    "gs:/b": "gs://b",
    "https:/host/x": "https://host/x",
    "file:/x": "file:///x",
    "new:/x": "new://x",
}
OTHERS = {
    "$HOME/x": "'$HOME'",
    "${HOME}/x": "'${HOME}'",
    "out/$(date)": "'$('",
    "s3://b/$DAY/x": "'$DAY'",
    "%USERPROFILE%/x": "%USERPROFILE%",
    "{{ day }}/x": "'{{'",
    "C:\\x": "Windows",
    " x": "blank",
}
FINE = [
    "x",
    "./s3:/b/x",
    "s3/b/x",
    "s3://b/x",
    "file:///x",
    "a//b",
    "a:b.png",
    "5$",
    "a%20b%20c.png",
    "~/x",
    "100%",
    "",
]


@pytest.mark.parametrize("place", FINE)
def test_what_may_be_meant(place: str) -> None:
    assert misspelling(place) is None


@pytest.mark.parametrize(("place", "said"), [*MEANT.items(), *OTHERS.items(), ("~nobody-here/x", "no such user")])
def test_misspelt_places_are_refused(
    place: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_manifest: WriteManifest
) -> None:
    """Incident: `s3:/bucket/set` and `${HOME}/set` became folders of that name, with a finished run in them."""
    monkeypatch.chdir(tmp_path)
    for refuse in (open_store, local_path, find_model):
        with pytest.raises(InputError) as error:
            refuse(place)
        assert said in str(error.value)
    if not place.startswith("s3://"):  # keys of a bucket may be anything: what is not there is not found
        with pytest.raises(InputError):
            join(str(tmp_path), place)
        (tmp_path / "job.toml").write_text(f'manifest = "m.csv"\noutput = {json.dumps(place)}\n')
        with pytest.raises(InputError, match="key 'output'"):
            load_job(str(tmp_path / "job.toml"))
    assert list(tmp_path.glob("*")) == list(tmp_path.glob("job.toml"))


def test_in_a_manifest(write_manifest: WriteManifest, model_configs: Path) -> None:
    """Images and adapters: a problem of the row. A file of the very name is what is meant."""
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "image": "s3:/b/x.png", "strength": 0.5},
        {"prompt": "a", "loras": "$LORAS/x"},
    ]
    path = write_manifest("m.jsonl", rows)
    assert [(one.column, "did you mean" in one.message) for one in problems(path, model_configs)] == [
        ("image", True),
        ("loras", False),
    ]
    (path.parent / "$a.png").write_bytes(png())
    ((row,), _) = read(write_manifest("n.jsonl", [{"prompt": "a", "image": "$a.png"}]), model_configs)
    assert row.inputs["image"].uri == str(path.parent / "$a.png")


def test_below_what_is_there(tmp_path: Path) -> None:
    """A folder whose name holds a dollar sign can have new files."""
    (tmp_path / "$set").mkdir()
    assert local_path(f"{tmp_path}/$set/new") == tmp_path / "$set" / "new"


@pytest.mark.parametrize("command", ["run", "plan", "status", "verify", "retry"])
def test_commands_refuse_them(command: str, write_manifest: WriteManifest, batchgen: RunCli, tmp_path: Path) -> None:
    path = write_manifest("m.csv", [{"prompt": "a"}])
    arguments = (path, "--output", "s3:/b/x") if command in ("run", "plan") else ("s3:/b/x",)
    done = batchgen(command, *arguments, cwd=tmp_path, here=True)
    assert (done.returncode, done.stderr) == (2, "error: s3:/b/x is no URI; did you mean 's3://b/x'?\n")


def test_protocols_are_suggested() -> None:
    with pytest.raises(InputError, match=r"no protocol s4:// here; did you mean s3://\?"):
        open_store("s4://bucket/x")
    with pytest.raises(InputError, match="names no bucket"):
        open_store("s3://")
