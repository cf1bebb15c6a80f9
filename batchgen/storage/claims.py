"""A file that appears under its name whole and once, on file systems with hard links and without. Knows no stores.

vfat, exFAT, SMB and many FUSE file systems have no links. There a creator first makes a claim beside the name, which
only one can (O_EXCL), and whoever holds it renames the file to its place. A claim is held for the time of a look and a
rename; one that nobody has ended for `ABANDONED_AFTER` is left behind by a process that died, and the next number is
claimed. Claims are removed when the file is there, and never before, so that a late holder meets a claim above its own
or the file.
"""

import errno
import os
import time
from pathlib import Path

__all__ = ["publish"]

ABANDONED_AFTER = 30.0  # seconds that one waits for another's claim, by one's own clock
_LOOK_EVERY = 0.02  # seconds
# EPERM: vfat, exFAT, and files that a mount gives to another user; EACCES: Android's storage; the others: FUSE and SMB
_NO_LINKS = {
    errno.EPERM,
    errno.EACCES,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EMLINK,
    errno.EXDEV,
    errno.EINVAL,
}


def publish(temporary: Path, target: Path) -> None:
    """Give a finished file its name; `temporary` lies in the same folder, and may be gone afterwards.

    Raises:
        FileExistsError: the name is taken, whoever came first.
        OSError: it failed otherwise; ENOTSUP where the file system lets two processes create one file.
    """
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _publish_by_claim(temporary, target)


def _publish_by_claim(temporary: Path, target: Path) -> None:
    while True:
        number = _claim(target)
        if os.path.lexists(target):
            _remove_claims(target, number)
        elif not os.path.lexists(_claim_file(target, number + 1)):  # else this one was taken for abandoned
            break
    try:
        temporary.rename(target)
    except OSError:
        _claim_file(target, number).unlink(missing_ok=True)
        raise
    _remove_claims(target, number)


def _claim(target: Path) -> int:
    """Make the next claim on a name, once those below it are gone or abandoned; returns its number."""
    watched, since = 0, time.monotonic()
    while not os.path.lexists(target):
        highest = 0
        while os.path.lexists(_claim_file(target, highest + 1)):
            highest += 1
        if highest != watched:
            watched, since = highest, time.monotonic()
        if highest and time.monotonic() - since < ABANDONED_AFTER:
            time.sleep(_LOOK_EVERY)
            continue
        if _make_claim(_claim_file(target, highest + 1)):
            if _make_claim(_claim_file(target, highest + 1)):
                raise OSError(errno.ENOTSUP, "no hard links, and one file can be created twice")
            return highest + 1
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def _make_claim(path: Path) -> bool:
    """Make a claim's file; False where it is there already."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    return True


def _remove_claims(target: Path, number: int) -> None:
    for below in range(number, 0, -1):
        _claim_file(target, below).unlink(missing_ok=True)


def _claim_file(target: Path, number: int) -> Path:
    return target.with_name(f".{target.name}.claim-{number}")
