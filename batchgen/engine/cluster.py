"""The Ray cluster that a run uses: found at its address or started here, what it offers, how it grows and shrinks.

Knows nothing of workers but what they want.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_get

from batchgen.engine.capacity import Capacity, described
from batchgen.engine.probe import NO_TOKEN
from batchgen.errors import ClusterError, one_line
from batchgen.job import WorkerResources
from batchgen.machine import cores

__all__ = ["Nodes", "cluster", "free", "never_fits", "waits_for_room"]

OBJECT_STORE_BYTES = 100 * 2**20  # nothing of ours goes through it; Ray's least is 75 MiB
_ANSWER_TIMEOUT = 30.0  # seconds; a head answers within milliseconds, Ray's import takes seconds on a busy machine
SOCKET_BYTES = 107  # of a path; Linux takes no longer one
_SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
_ADDRESS = "RAY_ADDRESS"  # Ray's own variable; set inside submitted jobs


@contextmanager
def cluster(address: str | None, workers: int | None, notice: Callable[[str], None]) -> Iterator[Capacity]:
    """Connect to a cluster, or start a local Ray and stop it afterwards.

    Args:
        address: of a running cluster ("auto" for the one this machine belongs to, "local" for none); without one
            RAY_ADDRESS is taken, and without that a local Ray is started.
        workers: how many will be asked for; a local Ray has as many places, even on fewer cores.
        notice: takes a line that is worth reading.

    Raises:
        ClusterError: Ray does not start, nothing answers at the address, or the cluster wants another token.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    # Ray prints a paragraph about every worker that dies on stdout, which is for data; the run says it in a line
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        address, named = _chosen(address)
        try:
            if address == "auto":
                address = _of_this_machine()
                named = f"{address} (auto)"
            if address is None:
                places = max(cores(), workers or 1)
                with _on_loopback():
                    ray.init(
                        address="local",
                        num_cpus=places,
                        include_dashboard=False,
                        object_store_memory=OBJECT_STORE_BYTES,
                        _temp_dir=_temp_dir(notice),
                        **quiet,
                    )
            else:
                _require_answer(address, named)
                ray.init(address=address, **quiet)
        except SystemExit:  # Ray's own answer to a SIGTERM while it starts
            raise KeyboardInterrupt from None
        except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
            reason = one_line(error)
            if address is None:
                raise ClusterError(f"Ray did not start: {reason}") from error
            raise ClusterError(f"no Ray cluster can be used at {named}: {reason}") from error
        try:
            offered = ray.cluster_resources()
            yield Capacity(
                place="Ray started here" if address is None else f"Ray at {named}",
                nodes=sum(node["Alive"] for node in ray.nodes()),
                cpus=cores() if address is None else int(offered.get("CPU", 0)),
                gpus=int(offered.get("GPU", 0)),
            )
        finally:
            ray.shutdown()


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have a Ray that starts here listen to this machine alone, as on systems where it can be no part of a cluster.

    It has no public option for that; an address of 127.0.0.1 it replaces by the machine's own.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _temp_dir(notice: Callable[[str], None]) -> str | None:
    """Where a local Ray keeps its sockets and logs, if its own choice is too long for sockets; None leaves it to Ray.

    Raises:
        ClusterError: there is no shorter place.
    """
    usual = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()).absolute()
    longest = SOCKET_BYTES - len(f"/ray/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
    if len(os.fsencode(usual)) <= longest:
        return None
    said = f"the temporary folder {usual} is too long a path for Ray's sockets, which may have {SOCKET_BYTES} bytes"
    for place in _SHORT_PLACES:
        ours = Path(place, "ray")
        if os.access(ours if ours.exists() else place, os.W_OK | os.X_OK):
            notice(f"{said}; Ray keeps them in {ours}")
            return str(ours)
    raise ClusterError(f"{said}; set RAY_TMPDIR to a folder whose path has at most {longest} bytes")


def _chosen(address: str | None) -> tuple[str | None, str]:
    """The address to use, None for a local Ray, and its name; as in Ray, `auto` means RAY_ADDRESS where that is set."""
    variable = os.environ.get(_ADDRESS) if address in (None, "auto") else None
    chosen = variable or address
    return None if chosen == "local" else chosen, f"{chosen}{f' (from {_ADDRESS})' if variable else ''}"


def _of_this_machine() -> str:
    """The address that `auto` stands for; found once, since where several Rays run it may be another each time.

    Raises:
        ConnectionError: no Ray runs here.
    """
    from ray._private import services
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as `ray.init` does for this address alone
    address: str = services.canonicalize_bootstrap_address("auto")
    return address


def _require_answer(address: str, named: str) -> None:
    """Ask whether a cluster answers, and would take us; `ray.init` would try for minutes, with warnings.

    Raises:
        ClusterError: none does; the text says what to try.
    """
    if address.startswith(("http://", "https://")):
        raise ClusterError(f"{named} is where jobs are submitted; give the head's host:6379, auto, or local")
    if "://" in address:
        return  # Ray Client's own protocol, which has a time limit
    command = [sys.executable, "-m", "batchgen.engine.probe", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"no Ray cluster answers at {named} within {_ANSWER_TIMEOUT:.0f} s; is it the head's address and port?"
        ) from None
    reason = done.stdout.strip()
    if reason == NO_TOKEN:
        raise ClusterError(f"the Ray cluster at {named} wants a token: {_token_advice()}")
    if reason:
        raise ClusterError(f"no Ray cluster answers at {named}: {reason}; is it up? --address local starts one here")


def _token_advice() -> str:
    """What to export for a cluster that refused us."""
    shown = "what `ray get-auth-token` prints on the cluster's head"
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return f"export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN with {shown} (or keep that in ~/.ray/auth_token)"
    return f"export RAY_AUTH_TOKEN with {shown}; RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token hold none, or another"


def free(names: Mapping[str, float]) -> str:
    """How much of these resources no one uses now, over all nodes."""
    available = ray.available_resources()
    return described({name: available.get(name, 0) for name in names})


def _autoscales() -> bool:
    """Whether something could add nodes to the cluster.

    Ray has no public answer. Its older autoscaler notes the kinds of nodes, or, where it may not add any, names each
    node a kind of its own; the newer one numbers its states (and says in `never_fits` what it cannot add).
    """
    with suppress(Exception):  # what is not public may be missing
        status = json.loads(_internal_kv_get("__autoscaling_status") or "{}")
        kinds = status.get("autoscaler_report", {}).get("node_type_mapping") or {}
        return any(kind != f"node_{node}" for node, kind in kinds.items()) or _newer_state() is not None
    return False


def waits_for_room(resources: WorkerResources) -> bool:
    """Whether to wait for nodes that can hold a worker, where there is none now."""
    return resources.wait_minutes is not None or _autoscales()


def never_fits(wanted: Mapping[str, float]) -> bool:
    """Whether the newer autoscaler has said that it has no kind of node for such a worker, which was asked for."""
    with suppress(Exception):
        state = _newer_state()
        refused = [dict(request.resources_bundle) for request in state.infeasible_resource_requests] if state else []
        return dict(wanted) in refused
    return False


def _newer_state() -> Any:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    state = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=5)).autoscaling_state
    return state if state.autoscaler_state_version else None


@dataclass(kw_only=True, slots=True)
class Nodes:
    """The nodes of a cluster over time."""

    alive: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # Ray's records by node id

    def look(self) -> dict[str, str]:
        """Take note of how the cluster is now; returns nodes that died since the last look: names for people by id."""
        now = {node["NodeID"]: node for node in ray.nodes()}
        dead = {id_: now.get(id_, node) for id_, node in self.alive.items() if not now.get(id_, {}).get("Alive")}
        self.alive = {id_: node for id_, node in now.items() if node["Alive"]}
        return {id_: _name(node) for id_, node in dead.items()}

    def name(self, id_: str) -> str:
        """A node's name for people."""
        node = self.alive.get(id_)
        return f"node {id_[:12]}" if node is None else _name(node)

    def draining(self) -> set[str]:
        """Ids of nodes that are going away, such as spot machines that were given notice."""
        return set(ray._private.state.state.get_draining_nodes())  # Ray has no public answer; its libraries ask so

    def places(self, wanted: Mapping[str, float]) -> int:
        """For how many such workers the nodes have room, used or not."""
        return sum(
            int(min((node["Resources"].get(name, 0) / amount for name, amount in wanted.items()), default=1))
            for node in self.alive.values()
        )

    def holds(self, actor: Any) -> bool:
        """Whether an actor is on a node, where it may still be starting."""
        address = ray._private.state.actors(actor._actor_id.hex())["Address"]  # Ray has no public answer
        node = self.alive.get(address["NodeID"])
        # before it is, there is no address, or that of a node's raylet with which it waits
        return node is not None and bool(address["IPAddress"]) and address["Port"] != node["NodeManagerPort"]


def _name(node: Mapping[str, Any]) -> str:
    return f"node {node['NodeManagerAddress']} ({node['NodeID'][:12]})"
