"""Local outputs where files have no hard links, where the disk is full, and where it is read-only.

Links are refused by a wrapper in processes of the tests' own; the full disk is a real one.
"""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import go_without

from batchgen.errors import AlreadyExists, NotFound, StoreRefused
from batchgen.storage import claims, open_store

UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
KEYS = 60
NO_LINKS = """
import json, os, sys
from batchgen.storage import claims
from batchgen.errors import AlreadyExists, StoreRefused
from batchgen.storage import open_store
def refuse(*_):
    number = int(sys.argv[2])
    raise OSError(number, os.strerror(number))
os.link = refuse
store = open_store(sys.argv[1])
"""


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", NO_LINKS + script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def content(creator: int, key: int) -> bytes:
    return f"{creator}-{key};".encode() * 2000


def test_two_creators_without_links(tmp_path: Path) -> None:
    """Each key has one winner, no reader sees a part of it, and no claim is left; a write still replaces."""
    script = """
won = []
print("ready", flush=True)
sys.stdin.readline()
for key in range(int(sys.argv[4])):
    try:
        store.create(f"data/{key}", f"{sys.argv[3]}-{key};".encode() * 2000)
        won.append(key)
    except AlreadyExists:
        pass
store.write("data/0", b"new")
print(json.dumps(won))
"""
    creators = [
        child(script, tmp_path, number, creator, KEYS) for creator, number in enumerate((errno.EPERM, errno.EOPNOTSUPP))
    ]
    store = open_store(str(tmp_path))
    for creator in creators:
        assert creator.stdout is not None and creator.stdout.readline() == "ready\n"
    for creator in creators:
        assert creator.stdin is not None
        creator.stdin.write("\n")
        creator.stdin.flush()
    while any(creator.poll() is None for creator in creators):
        for key in range(1, KEYS):
            try:
                assert store.read(f"data/{key}") in (content(0, key), content(1, key))
            except NotFound:
                break
    won = [json.loads(creator.communicate()[0]) for creator in creators]
    assert sorted(won[0] + won[1]) == list(range(KEYS))
    assert all(store.read(f"data/{key}") == content(number, key) for number in (0, 1) for key in won[number] if key)
    assert store.read("data/0") == b"new"
    assert sorted(store.names("data")) == sorted(map(str, range(KEYS)))


def refuse_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)


def test_a_claim_outlives_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A creator is stopped with its claim in hand: another takes over after a time, and the first, awake, is refused.

    One that was killed there leaves a claim that the next create removes.
    """
    script = """
import signal
claim = claims._claim
def claim_and_stop(target):
    number = claim(target)
    os.kill(os.getpid(), signal.Signals(int(sys.argv[3])))
    return number
claims._claim = claim_and_stop
claims.ABANDONED_AFTER = 0.1
try:
    store.create("data/x", b"late")
    print("created")
except AlreadyExists:
    print("refused")
"""
    refuse_links(monkeypatch)
    monkeypatch.setattr(claims, "ABANDONED_AFTER", 0.3)
    store = open_store(str(tmp_path))
    killed = child(script, tmp_path, errno.EPERM, int(signal.SIGKILL))
    assert killed.wait(60) == -signal.SIGKILL
    late = child(script, tmp_path, errno.ENOTSUP, int(signal.SIGSTOP))
    os.waitid(os.P_PID, late.pid, os.WSTOPPED)
    assert [name for name in store.names("data") if "claim" in name] == [".x.claim-1", ".x.claim-2"]
    store.create("data/x", b"mine")
    os.kill(late.pid, signal.SIGCONT)
    assert late.communicate()[0] == "refused\n"
    assert store.read("data/x") == b"mine"
    assert [name for name in store.names("data") if "claim" in name] == []
    with pytest.raises(AlreadyExists):
        store.create("data/x", b"again")


def test_where_nothing_is_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither links nor O_EXCL: refused, since two runs could commit one shard."""
    refuse_links(monkeypatch)
    opened = os.open

    def open_anyway(path: str, flags: int, *mode: int) -> int:
        return opened(path, flags & ~os.O_EXCL if "claim" in str(path) else flags, *mode)

    monkeypatch.setattr(os, "open", open_anyway)
    with pytest.raises(StoreRefused, match=r"data/x: no hard links, and one file .* choose another place"):
        open_store(str(tmp_path)).create("data/x", b"x")


def test_a_disk_that_is_full_or_read_only(tmp_path: Path) -> None:
    """What somebody has to do something about says so, leaves nothing behind, and is over when the cause is."""
    place = tmp_path / "disk"
    place.mkdir()
    script = """
import subprocess
def said(key, data=b"x" * 4096):
    try:
        store.create(key, data)
        return "stored"
    except StoreRefused as error:
        return str(error)
heard = [said("data/a"), said("data/b", b"x" * 1_000_000), store.names("data"), said("data/c")]
for option in ("ro", "rw"):
    subprocess.run(["mount", "-o", f"remount,{option}", sys.argv[1]], check=True)
    heard.append(said(f"data/{option}"))
print(json.dumps(heard))
"""
    command = [*UNSHARE, "sh", "-c", 'mount -t tmpfs -o size=256k none "$0" && exec "$@"', str(place)]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        go_without("mount namespaces are not permitted here")
    done = subprocess.run(
        [*command, sys.executable, "-c", NO_LINKS + script, str(place), str(errno.EPERM)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, full, names, small, read_only, again = json.loads(done.stdout)
    assert (first, names, small, again) == ("stored", ["a"], "stored", "stored")
    assert "data/b: No space left on device; free some space" in full
    assert "data/ro: Read-only file system; make the place writable again" in read_only
