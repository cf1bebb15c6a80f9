"""A real S3 server for the tests: Ceph's object gateway with the two daemons under it, on loopback.

Credentials are enforced and conditional writes are honoured, which the usual Python stand-ins do not both do.
Everything lives in one folder and in processes that this module starts and ends itself. It knows nothing of batchgen.
"""

import os
import random
import secrets
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin", "setpriv")
STEP_SECONDS = 30  # each step takes under 0.4 s on an idle machine; only a machine in trouble comes near this
# About 1 start in 100 fails: a client that has not heard the cluster's fsid yet sends a command without it, and the
# monitor refuses (EPERM). A port taken between the look and its use is mended the same way.
START_ATTEMPTS = 3
PORTS = range(20000, 32000)  # above Ray's workers (10002-19999), below where Linux picks outgoing ports (32768 up)

CEPH_CONF = """\
[global]
fsid = {fsid}
mon initial members = a
mon host = v1:127.0.0.1:{mon_port}
ms bind msgr2 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
mon data = {folder}/mon
mon data avail crit = 1
mon allow pool size one = true
mon max pg per osd = 1000
# Every map change, such as each of the gateway's pools, waits one such interval. Ceph's default of 1 s makes the start
# take 11 s instead of 1 s.
paxos propose interval = 0.02
paxos min wait = 0.01
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 8589934592
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd crush update on start = false
# The daemon would report its device class before it knows the cluster's fsid: 2 of 15 starts hung on the lost answer.
osd class update on start = false
osd class load list = *
osd class default list = *
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{s3_port}
rgw enable gc threads = false
rgw enable lc threads = false
rgw enable quota threads = false
rgw enable usage log = false
run dir = {folder}/run
crash dir = {folder}/crash
log file = {folder}/$name.log
# A socket's path may have 107 characters, which pytest's folders can exceed.
admin socket =
pid file =
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Server:
    """Where a running server answers and the one user it accepts."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str

    def env(self) -> dict[str, str]:
        """The variables by which boto3, s3fs, pyarrow, Polars and DuckDB's fsspec find this server.

        Configuration files of whoever runs the tests are hidden, so that no profile of theirs takes part.
        """
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # pyarrow's chunked bodies get a 411 otherwise
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "AWS_ALLOW_HTTP": "true",  # Polars and obstore refuse plain HTTP without it
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def create_bucket(self, name: str) -> None:
        """Creates a bucket; one that this user has already is left as it is."""
        _client(self).create_bucket(Bucket=name)

    def client(self, **config: Any) -> Any:
        """A client of botocore's, with these settings of its own."""
        import botocore.session  # comes with s3fs, which a machine that tests nothing of S3 may lack
        from botocore.config import Config

        return botocore.session.Session().create_client(
            "s3",
            region_name=self.region,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}, **config),
        )


@lru_cache
def _client(server: S3Server) -> Any:
    """Made once a server: botocore reads its tables for a third of a second each time."""
    return server.client()


def missing_programs() -> list[str]:
    """Programs the server needs that are not on PATH; `.ci/install-system-packages` installs them."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextmanager
def running_server(folder: Path) -> Iterator[S3Server]:
    """Runs a server whose data and logs are in `folder`, an existing, empty one, until the block ends.

    Ready after about 1 s, with about 120 MB of memory plus the stored objects, which are all in memory. Raises
    RuntimeError with the last lines of the log when a step fails.
    """
    with ExitStack() as daemons:
        for attempt in range(1, START_ATTEMPTS + 1):
            attempt_folder = folder.resolve() / f"attempt-{attempt}"
            attempt_folder.mkdir()
            try:
                server = _start(attempt_folder, daemons)
            except RuntimeError:
                daemons.close()
                if attempt == START_ATTEMPTS:
                    raise
            else:
                break
        yield server


def _start(folder: Path, daemons: ExitStack) -> S3Server:
    """Starts the three daemons one after the other; what was started is on the stack even when a later step fails."""
    mon_port, s3_port = _free_ports(2)
    fsid, osd_uuid = str(uuid.uuid4()), str(uuid.uuid4())
    for name in ("mon", "osd", "rgw", "run", "crash"):
        (folder / name).mkdir()
    conf = folder / "ceph.conf"
    conf.write_text(CEPH_CONF.format(fsid=fsid, folder=folder, mon_port=mon_port, s3_port=s3_port))
    server = S3Server(
        endpoint=f"http://127.0.0.1:{s3_port}",
        access_key=secrets.token_hex(10),
        secret_key=secrets.token_hex(20),
        region="us-east-1",
    )
    at = ("-c", str(conf))
    monmap = str(folder / "monmap")
    user = ("--uid=tests", "--display-name=tests", f"--access-key={server.access_key}")
    _step(folder, "monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{mon_port}]", monmap)
    _step(folder, "ceph-mon", *at, "-i", "a", "--mkfs", "--monmap", monmap)
    daemons.enter_context(_daemon(folder, "ceph-mon", *at, "-i", "a", "-f"))
    _step(folder, "ceph", *at, "osd", "new", osd_uuid, "0")
    _step(folder, "ceph", *at, "osd", "crush", "add", "osd.0", "1.0", "host=localhost", "root=default")
    _step(folder, "ceph-osd", *at, "-i", "0", "--mkfs", "--osd-uuid", osd_uuid)
    daemons.enter_context(_daemon(folder, "ceph-osd", *at, "-i", "0", "-f"))
    _step(folder, "radosgw-admin", *at, "user", "create", *user, f"--secret-key={server.secret_key}")
    gateway = daemons.enter_context(_daemon(folder, "radosgw", *at, "-n", "client.rgw", "-f"))
    _wait_for_port(folder, gateway, s3_port)
    return server


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, drawn at random so that servers started at the same time rarely meet."""
    free: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        free.append(port)
        if len(free) == count:
            return free
    raise RuntimeError(f"fewer than {count} free ports in {PORTS}")


def _step(folder: Path, *command: str) -> None:
    """Runs one set-up command to its end."""
    log = folder / f"{command[0]}.out"
    with log.open("ab") as out:
        try:
            code = subprocess.run(command, stdout=out, stderr=out, timeout=STEP_SECONDS, check=False).returncode
        except subprocess.TimeoutExpired:
            raise _failure(command, f"not done after {STEP_SECONDS} s", log) from None
    if code != 0:
        raise _failure(command, f"exit code {code}", log)


@contextmanager
def _daemon(folder: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs one daemon; the kernel ends it as well when the thread that started it dies, killed tests included."""
    with (folder / f"{command[0]}.out").open("ab") as out:
        process = subprocess.Popen(("setpriv", "--pdeathsig", "KILL", "--", *command), stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()  # nothing is worth an orderly end: all data is in memory
        process.wait()


def _wait_for_port(folder: Path, gateway: subprocess.Popen[bytes], port: int) -> None:
    """Returns when the gateway accepts connections, which it does only once it can serve them."""
    end = time.monotonic() + STEP_SECONDS
    while time.monotonic() < end:
        if gateway.poll() is not None:
            raise _failure(("radosgw",), f"exit code {gateway.returncode}", folder / "radosgw.out")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise _failure(("radosgw",), f"no answer after {STEP_SECONDS} s", folder / "radosgw.out")


def _failure(command: Sequence[str], what: str, log: Path) -> RuntimeError:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return RuntimeError(f"S3 test server: {command[0]}: {what}\n{tail}")
