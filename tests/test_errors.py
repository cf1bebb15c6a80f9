"""Texts of errors, ledgers and terminals hold no terminal codes, whoever's words they repeat."""

import json
import pickle
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import WriteManifest, called
from rich.table import Table

from batchgen.cli import main
from batchgen.dataset.schema import applied_cells
from batchgen.errors import ErrorClass, InputError, StoreError, one_line, printable, without_secrets
from batchgen.generation.parameters import ImageRef, Parameters
from batchgen.report.display import PlainConsole, RunDisplay
from batchgen.rows import Row, failed_row
from batchgen.work import failure_of, lost

RED = "\x1b[31m"
LINK = "\x1b]8;;http://x\x1b\\x\x1b]8;;\x07"


def has_codes(text: str) -> bool:
    return any((ord(one) < 32 and one not in "\n\t") or 127 <= ord(one) < 160 for one in text)


def test_what_is_spelt_out() -> None:
    """Control characters of both blocks, directions and half characters; no letter of any script."""
    assert printable(f"a{RED}b\x07\x9b5m\r\u202e\ud83d") == r"a\x1b[31mb\x07\x9b5m\r\u202e\ud83d"
    plain = "a\tb\nü 猫\u3000🧑‍🚀 e\u0301"
    assert printable(plain) == plain
    assert one_line(ValueError(f"{RED}no\x1b[0m such\r\n {LINK} thing\x9b0m\a")) == r"no such x thing\x07"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 1000))) == 300


def test_errors_and_ledgers() -> None:
    """What a library says in colors, and what a row's own cells bring along."""
    error = StoreError(f"{RED}place: gone")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == r"\x1b[31mplace: gone"
    for failure in (failure_of(error), failure_of(RuntimeError(f"{RED}bad\x1b[0m\nthing")), lost("died")):
        assert not has_codes(failure.message)
    cells = {"model": "m", "width": 64, "height": 64, "seed": 1, "num_inference_steps": 1, "eta": 0.0}
    cells |= {"scheduler": "DDIMScheduler", "scheduler_kwargs": {}}
    row = Row(id="x", fingerprint="", task="unconditional", parameters=Parameters.from_cells(cells))
    assert not has_codes(failed_row(row, ErrorClass.INPUT, f"names {RED}red").error)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_what_is_said_of_a_manifest(write_manifest: WriteManifest, model_configs: Path, flags: list[str]) -> None:
    """Problems and notices with the file's and the cells' own words; JSON gives the file's name as it is."""
    runner = CliRunner()
    wrong = [{"prompt": "a", "id": f"x{RED}"}, {"prompt": "a", "id": f"x{RED}"}, {"prompt": "a", "image": f"\x9b{RED}"}]
    right = {"prompt": f"a {RED}cat", "stepp": 1, f"stepz{RED}": 2}
    for name, rows, status in ((f"{RED}m.jsonl", wrong, 2), (f"{RED}n.jsonl", [right], 0)):
        path = write_manifest(name, rows)
        done = runner.invoke(main, ["validate", str(path), "--model", str(model_configs), *flags], color=True)
        assert done.exit_code == status, done.output
        assert not has_codes(done.output)
    found = runner.invoke(main, ["validate", str(path.with_name(f"{RED}m.jsonl")), "-m", str(model_configs), "--json"])
    problems = json.loads(found.stdout)["problems"]
    assert problems[0]["file"].endswith(f"{RED}m.jsonl")
    assert not any(has_codes(problem["message"]) for problem in problems)


def test_what_a_run_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Notices of a run; brackets and words between colons stay as they are."""
    RunDisplay(PlainConsole(stderr=True, force_terminal=True)).notice(f"{RED}[red] :cat: {InputError(RED)}")
    assert capsys.readouterr().err == "\\x1b[31m[red] :cat: \\x1b[31m\n"


SECRETS = [
    "s3://KEY:geheim@bucket/a.png",
    "https://user:geheim@host/a.png?X-Amz-Signature=geheim&X-Amz-Credential=geheim",
    "https://host/a.png?sv=1&sig=geheim#geheim",
    "host/a.png?X-Amz-Security-Token=geheim",
    "AWS_SECRET_ACCESS_KEY=geheim password='geheim'",
    "{'key': 'AKIAABCDEFGHIJKLMNOP', 'secret': 'geheim'}",
    "Bearer geheimgeheimgeheim, hf_geheimgeheimgeheim",
]
PUBLIC = [
    "s3://bucket/a@b/c?.png",
    "/a/b?sig",
    "{'path': 'x', 'token': 'cat'}",
    "a key: see https://host/a.png",
    "1:2 = 3",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_neither_said_nor_kept(text: str) -> None:
    """Users and passwords, query strings of the web and keys, in errors, ledgers, problems and metadata."""
    assert "geheim" not in str(StoreError(f"{text}: gone")) + failure_of(RuntimeError(text)).message
    assert "AKIAABCDEFGHIJKLMNOP" not in without_secrets(text)
    cells = {"model": "m", "width": 64, "height": 64, "seed": 1, "num_inference_steps": 1, "eta": 0.0}
    cells |= {"scheduler": "DDIMScheduler", "scheduler_kwargs": {}}
    parameters = Parameters.from_cells(cells)
    image = ImageRef(uri=text, sha256="0" * 64, width=1, height=1)
    row = Row(id="x", fingerprint="", task="unconditional", parameters=parameters, inputs={"image": image})
    assert "geheim" not in json.dumps(applied_cells(row)) and applied_cells(row)["image_sha256"] == "0" * 64


@pytest.mark.parametrize("text", PUBLIC)
def test_what_is_no_secret(text: str) -> None:
    assert without_secrets(text) == text


def test_text_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """Incident: `status` of a path with brackets ended in a MarkupError. Cells, headings and lines alike."""
    table = Table(f"[/x]{RED}", box=None)
    table.add_row(f"[red]a :cat: {RED}")
    PlainConsole(width=200).print(table, "[/y]")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [r"[/x]\x1b[31m", r"[red]a :cat: \x1b[31m", "[/y]"]
    done = called("status", "out/[/x]")
    assert done.returncode == 2 and "out/[/x]" in done.stderr
