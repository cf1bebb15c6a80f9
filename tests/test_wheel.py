"""The wheel is small enough for a package index, and its built-in models are those of the source tree."""

import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from batchgen import builtin
from batchgen.models.catalog import find_model

ROOT = Path(__file__).parent.parent
MOST_BYTES = 100e6  # what PyPI takes
LARGE = 2_000_000  # bytes; the depth estimator is smaller, and is a model of its own too
FIND = """
from batchgen.models.catalog import find_model
import sys
for name in sys.argv[1:]:
    model = find_model(name)
    print(name, model.fingerprint, model.folder.resolve())
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=300)
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_nothing_large_twice(wheel: Path) -> None:
    assert wheel.stat().st_size < MOST_BYTES
    with zipfile.ZipFile(wheel) as archive:
        large = Counter((info.CRC, info.file_size) for info in archive.infolist() if info.file_size > LARGE)
    assert set(large.values()) == {1}


def test_its_models_are_those_of_the_source_tree(wheel: Path, tmp_path: Path) -> None:
    installed, cache, names = tmp_path / "site", tmp_path / "cache", builtin.model_names()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    environment = {**os.environ, "PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(cache)}

    def found() -> dict[str, tuple[str, Path]]:
        command = [sys.executable, "-c", FIND, *names]
        lines = subprocess.run(
            command, check=True, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
        ).stdout.splitlines()
        return {name: (fingerprint, Path(folder)) for name, fingerprint, folder in map(str.split, lines)}

    first = found()
    assert {name: fingerprint for name, (fingerprint, _) in first.items()} == {
        name: find_model(name).fingerprint for name in names
    }
    assert first["builtin"][1].is_relative_to(installed)
    completed = {name: folder for name, (_, folder) in first.items() if folder.is_relative_to(cache)}
    assert set(completed) == {"builtin-depth", "builtin-inpainting", "builtin-upscaler"}
    for folder in completed.values():
        assert all(file.resolve().is_relative_to(installed) for file in folder.rglob("*.*"))

    made = {name: folder.stat().st_ino for name, folder in completed.items()}
    assert found() == first  # and made once
    assert {name: folder.stat().st_ino for name, folder in completed.items()} == made
    lost = completed["builtin-depth"] / "vae" / "config.json"
    lost.unlink()
    assert found() == first
    assert lost.is_file()
