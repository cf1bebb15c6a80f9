"""The folder of wheels that a bare GPU machine lacks: downloaded here, installed there without a network.

`python jobs/bench/gpu/wheels.py --out FOLDER [--python 3.12] [--ray] [--limit-mib 64]`

diffusers and what it needs beyond the packages that README.md lists. With `--ray`, Ray too, without the part of its
wheel that serves other languages (`ray/jars/ray_dist.jar`, 35 of 79 MB). The total is counted against the limit.
"""

import argparse
import csv
import io
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main", "without"]

ALWAYS = ("diffusers==0.42.1", "importlib_metadata", "torchsde==0.2.6", "trampoline")
RAY = ("ray==2.60.0", "jsonschema", "jsonschema-specifications", "referencing", "rpds-py")
JAR = "ray/jars/ray_dist.jar"
GLIBC = ("2_28", "2_27", "2_17", "2014", "1")  # of manylinux platforms; pip wants each by its name


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 1 where the folder is larger than the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--python", default="3.12", help="version on the bare machine")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--limit-mib", type=float, default=64, help="most that may travel, the source tree included")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    for old in given.out.glob("*.whl"):
        old.unlink()
    for name in (*ALWAYS, *(RAY if given.ray else ())):
        _download(name, given.python, given.out)
    for wheel in given.out.glob("ray-*.whl"):
        without(wheel, JAR)
    total = 0.0
    for wheel in sorted(given.out.glob("*.whl")):
        size = wheel.stat().st_size / 2**20
        total += size
        print(f"{size:7.2f} MiB  {wheel.name}")
    print(f"{total:7.2f} MiB  in all, of {given.limit_mib:g} that may travel")
    return 0 if total <= given.limit_mib else 1


def _download(name: str, python: str, out: Path) -> None:
    platforms = [f"--platform=manylinux{'' if version.isdigit() else '_'}{version}_x86_64" for version in GLIBC]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += [f"--python-version={python}", "--implementation=cp", *platforms, f"--dest={out}", name]
    if subprocess.run(command).returncode:
        raise SystemExit(f"pip found no wheel of {name} for Python {python}")


def without(wheel: Path, member: str) -> None:
    """Take a file out of a wheel, and out of its RECORD, so that installers accept what is left."""
    smaller = wheel.with_suffix(".smaller")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            if info.filename == member:
                continue
            data = source.read(info)
            if info.filename.endswith(".dist-info/RECORD"):
                rows = [row for row in csv.reader(io.StringIO(data.decode())) if row and row[0] != member]
                text = io.StringIO()
                csv.writer(text, lineterminator="\n").writerows(rows)
                data = text.getvalue().encode()
            target.writestr(info, data)
    smaller.replace(wheel)


if __name__ == "__main__":
    sys.exit(main())
