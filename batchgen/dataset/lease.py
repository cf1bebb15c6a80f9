"""A lease on an output: keeps a second run away while one is live. Advice only; commits are safe without it.

It is taken from a holder that is dead by proof, its process being gone from the same boot and pid namespace, or that
was watched for as long as a live one would have been silent. Who was taken for dead and lives finds out at its next
renewal, at the latest before it ends, and stops.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from batchgen.dataset.records import RecordKind, read_record
from batchgen.errors import AlreadyExists, Damaged, LeaseLost, NotFound, OutputBusy, OutputGone, StoreError
from batchgen.storage import Store

__all__ = ["KEY", "Lease", "live_holder", "require_lease"]

KEY = ".batchgen/lease"
RENEW_EVERY = 10.0  # seconds
FIRST_LOOK = 1.0  # seconds; whether two took a lease at one moment shows before either has made a shard
WATCH_EVERY = 2.0  # seconds
EXPIRES_AFTER = 90.0  # seconds; eight renewals missed: the holder is dead, or its store is
SILENT_FOR = 30.0  # seconds without a renewal, of a holder that by its own clock expired already: clocks differ


@dataclass(frozen=True, kw_only=True, slots=True)
class _Holder:
    """Who wrote the lease last."""

    run: str
    host: str
    boot: str
    pid: int
    renewed: float  # Unix time
    released: bool
    process_started: str | None = None
    # what earlier code did not write
    id: str | None = None  # of the holding itself: a run that is started again holds anew
    pid_namespace: str | None = None
    said: Mapping[str, Any] = field(default_factory=dict)


_KIND = RecordKind(_Holder, 1)


class Lease:
    """Held from `__enter__` to `__exit__`, renewed by a thread in between.

    What `said` is set to goes out with the next renewal.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        *,
        progress: Callable[[str], None] = lambda _: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            store: the output.
            run: name of the run that wants it.
            progress: takes lines about a holder that is watched.
            check: called before each renewal; raises OutputGone where what is there is no longer the output.
        """
        self._store = store
        self._run = run
        self._progress = progress
        self._check = check
        self._id = uuid4().hex
        self.said: Mapping[str, Any] = {}  # what the holder says of its work, for JSON
        self._lost: StoreError | OutputBusy | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

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
        if self._lost is not None:
            return  # what is there belongs to somebody else
        with suppress(StoreError, LeaseLost):  # it expires by itself, and what went wrong before matters more
            self._require_own()
            self._store.write(KEY, self._content(released=True))

    def require(self) -> None:
        """Make sure that the lease was still held when it was last renewed.

        Raises:
            LeaseLost: another run has taken it.
            OutputGone: the output is not there any more.
        """
        if self._lost is not None:
            raise self._lost

    def renew(self) -> None:
        """Look whether the lease is held still, and hold it for as long again.

        Raises:
            LeaseLost: another run has taken it.
            OutputGone: the output is not there any more.
            StoreError: the store cannot say.
        """
        self._check()
        self._require_own()
        self._store.write(KEY, self._content())

    def _outlive_holder(self) -> None:
        """Return once the holder is dead, by proof or by its silence.

        A scheduler that restarts a job after its machine was lost comes back sooner than the lease ends.

        Raises:
            OutputBusy: it is alive.
        """
        first = holder = _holder(self._store)
        watched = time.monotonic()
        while holder is not None and not holder["released"] and holder.get("id") != self._id:
            dead = _is_dead(holder)
            if dead:
                return
            if dead is False or holder != first:
                raise OutputBusy(
                    f"{self._store.uri}: {_named(holder)} is writing to this output; wait for it, or stop it"
                )
            limit = SILENT_FOR if time.time() - holder["renewed"] > EXPIRES_AFTER else EXPIRES_AFTER
            if time.monotonic() - watched > limit:
                return
            if time.monotonic() - watched < WATCH_EVERY:
                self._progress(f"{_named(holder)} held this output last; waiting up to {limit:.0f} s for a sign of it")
            time.sleep(WATCH_EVERY)
            holder = _holder(self._store)

    def _keep(self) -> None:
        pause = FIRST_LOOK
        while not self._stop.wait(pause):
            pause = RENEW_EVERY
            try:
                self.renew()
            except (LeaseLost, OutputGone) as error:
                self._lost = error
                return
            except StoreError:
                continue  # commits meet the same error and report it

    def _require_own(self) -> None:
        holder = _holder(self._store)
        if holder is not None and holder.get("id") != self._id:
            raise LeaseLost(
                f"{self._store.uri}: {_named(holder)} has taken this output over, having had no sign of this run; what "
                "is committed stays"
            )

    def _content(self, *, released: bool = False) -> bytes:
        holder = {
            "id": self._id,
            "run": self._run,
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid_namespace": _pid_namespace(),
            "pid": os.getpid(),
            "process_started": _process_started(os.getpid()),
            "renewed": time.time(),
            "released": released,
            "said": dict(self.said),
        }
        return json.dumps(holder).encode()


def live_holder(store: Store) -> Mapping[str, Any] | None:
    """The live run that holds the output's lease, with its `run`, when it `renewed` and what it `said`; None: none.

    A look takes no time: whether a holder elsewhere lives is told by its clock.
    """
    try:
        holder = _holder(store)
    except StoreError:
        return None
    if holder is None or holder["released"]:
        return None
    dead = _is_dead(holder)
    if dead is None:
        dead = time.time() - holder["renewed"] > EXPIRES_AFTER
    return None if dead else holder


def require_lease(store: Store) -> None:
    """Make sure that the lease, if there is one, can be read.

    Raises:
        LaterVersion, Damaged, NotFound: it cannot.
    """
    if KEY.rpartition("/")[2] in store.names(".batchgen"):
        read_record(store, KEY, _KIND)


def _holder(store: Store) -> dict[str, Any] | None:
    """Who wrote the lease last; None where there is none, or one that nobody can read.

    Raises:
        StoreError: the store cannot be read.
    """
    try:
        return asdict(read_record(store, KEY, _KIND))
    except (NotFound, Damaged):
        return None


def _named(holder: Mapping[str, Any]) -> str:
    return f"run {holder['run']} (process {holder['pid']} on {holder['host']})"


def _is_dead(holder: Mapping[str, Any]) -> bool | None:
    """Whether the holder's process has ended; None where that cannot be seen from here.

    Containers may share a host name and a boot, and number their processes each for itself.
    """
    here = (socket.gethostname(), _boot(), _pid_namespace())
    if "" in here or (holder["host"], holder["boot"], holder.get("pid_namespace")) != here:
        return None
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OverflowError:
        return True
    except PermissionError:
        pass  # it is another user's
    started = _process_started(holder["pid"])
    return started is not None and started != holder.get("process_started")


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _pid_namespace() -> str:
    """The namespace in which processes have their numbers; empty where /proc shows another one's."""
    try:
        return (
            str(Path("/proc/self/ns/pid").readlink()) if Path("/proc/self").readlink().name == str(os.getpid()) else ""
        )
    except OSError:
        return ""


def _process_started(pid: int) -> str | None:
    """Start time of a process as the kernel counts it, so that a reused pid is no match; empty where it has ended.

    None where nobody says: not on this system, or not to this user.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # state Z: killed, and its parent has not asked for it yet
    return "" if fields[0] == "Z" else fields[19]
