"""A lease on an output: keeps a second run away while one is live. Advice only; commits are safe without it."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from batchgen.dataset.records import RecordKind, read_record
from batchgen.errors import AlreadyExists, OutputBusy, StoreError
from batchgen.storage import Store

__all__ = ["KEY", "Lease", "live_holder", "require_lease"]

KEY = ".batchgen/lease"
RENEW_EVERY = 10.0  # seconds
WATCH_EVERY = 2.0  # seconds
EXPIRES_AFTER = 90.0  # seconds; eight renewals missed: the holder is dead, or its store is


@dataclass(frozen=True, kw_only=True, slots=True)
class _Holder:
    """Who wrote the lease last."""

    run: str
    host: str
    boot: str
    pid: int
    process_started: str | None
    renewed: float  # Unix time
    released: bool
    said: Mapping[str, Any] = field(default_factory=dict)


_KIND = RecordKind(_Holder, 1)


class Lease:
    """Held from `__enter__` to `__exit__`, renewed by a thread in between.

    A holder on this machine whose process is gone is replaced at once, one elsewhere after `EXPIRES_AFTER`. What `said`
    is set to goes out with the next renewal.
    """

    def __init__(self, store: Store, run: str, *, progress: Callable[[str], None] = lambda _: None) -> None:
        self._store = store
        self._run = run
        self._progress = progress
        self.said: Mapping[str, Any] = {}  # what the holder says of its work, for JSON
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._store.create(KEY, self._content())
        except AlreadyExists:
            self._outlive_holder()
            self._store.write(KEY, self._content())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self._store.write(KEY, self._content(released=True))
        except StoreError:
            return  # it expires by itself, and what went wrong before matters more

    def _outlive_holder(self) -> None:
        """Return once the holder is surely dead; one elsewhere is watched until it renews or its lease ends.

        A scheduler that restarts a job after its machine was lost comes back sooner than the lease ends.

        Raises:
            OutputBusy: it is alive.
        """
        first = holder = _holder(self._store)
        watched = time.monotonic()
        while holder is not None and _is_live(holder):
            who = f"run {holder['run']} (process {holder['pid']} on {holder['host']})"
            if _is_here(holder) or holder != first:
                raise OutputBusy(f"{self._store.uri}: {who} is writing to this output; wait for it, or stop it")
            if time.monotonic() - watched > EXPIRES_AFTER:
                return  # by this machine's clock, whatever the holder's said
            if time.monotonic() - watched < WATCH_EVERY:
                self._progress(f"{who} held this output last; waiting up to {EXPIRES_AFTER:.0f} s for a sign of it")
            time.sleep(WATCH_EVERY)
            holder = _holder(self._store)

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_EVERY):
            try:
                self._store.write(KEY, self._content())
            except StoreError:
                continue  # commits meet the same error and report it

    def _content(self, *, released: bool = False) -> bytes:
        holder = {
            "run": self._run,
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": os.getpid(),
            "process_started": _process_started(os.getpid()),
            "renewed": time.time(),
            "released": released,
            "said": dict(self.said),
        }
        return json.dumps(holder).encode()


def live_holder(store: Store) -> Mapping[str, Any] | None:
    """The live run that holds the output's lease, with its `run`, when it `renewed` and what it `said`; None: none."""
    holder = _holder(store)
    return holder if holder is not None and _is_live(holder) else None


def require_lease(store: Store) -> None:
    """Make sure that the lease, if there is one, can be read.

    Raises:
        LaterVersion, Damaged, NotFound: it cannot.
    """
    if KEY.rpartition("/")[2] in store.names(".batchgen"):
        read_record(store, KEY, _KIND)


def _holder(store: Store) -> dict[str, Any] | None:
    """Who wrote the lease last; None where there is none, or one that nobody can read."""
    try:
        return asdict(read_record(store, KEY, _KIND))
    except StoreError:
        return None


def _is_live(holder: dict[str, Any]) -> bool:
    if holder["released"] or time.time() - holder["renewed"] > EXPIRES_AFTER:
        return False
    if _is_here(holder):
        return bool(holder["process_started"] == _process_started(holder["pid"]))
    return True


def _is_here(holder: dict[str, Any]) -> bool:
    return bool(holder["host"] == socket.gethostname() and holder["boot"] == _boot())


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _process_started(pid: int) -> str | None:
    """Start time of a process as the kernel counts it, so that a reused pid is no match; None where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # state Z: killed, and its parent has not asked for it yet
    return None if fields[0] == "Z" else fields[19]
