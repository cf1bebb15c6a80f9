"""The version, and what tells its builds apart; not at the package's front, so that modules below can say it."""

from functools import cache
from hashlib import sha256
from pathlib import Path

__all__ = ["__version__", "own_build"]

__version__ = "0.1.0"


@cache
def own_build() -> str:
    """The version with a digest of the package's source files: the same for checkouts and wheels of the same code."""
    package = Path(__file__).parent
    digest = sha256()
    for file in sorted(filter(Path.is_file, package.rglob("*.py"))):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(package).as_posix()} {len(content)} ".encode() + content)
    return f"{__version__} ({digest.hexdigest()[:8]})"
