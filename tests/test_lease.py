"""Who holds an output: a holder is dead by proof or by its silence, and one that was taken for dead finds out."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import go_without

from batchgen.dataset import lease
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.lease import Lease, live_holder
from batchgen.errors import LeaseLost, OutputBusy, OutputGone
from batchgen.storage import Store

HOLD = """
import sys, time
from batchgen.dataset import lease
from batchgen.storage import open_store

lease.RENEW_EVERY = 0.2
with lease.Lease(open_store(sys.argv[1]), "theirs"):
    print("held", flush=True)
    time.sleep(100)
"""
NAMESPACE = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]


@pytest.fixture(params=["here", "another pid namespace"])
def holding(request: pytest.FixtureRequest, local: Store) -> Iterator[tuple[bool, subprocess.Popen[str]]]:
    """A live process that holds the lease; and whether its death can be seen from here."""
    here = request.param == "here"
    apart = NAMESPACE if os.geteuid() == 0 else [NAMESPACE[0], "--user", "--map-root-user", *NAMESPACE[1:]]
    if not here and subprocess.run([*apart, "true"], capture_output=True, check=False).returncode != 0:
        go_without("pid namespaces are not permitted here")
    command = [*([] if here else apart), sys.executable, "-c", HOLD, local.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield here, process
        process.kill()


@pytest.mark.slow
def test_a_live_holder_keeps_others_away(
    holding: tuple[bool, subprocess.Popen[str]], local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Incident: seen from another container of one host name a live run looked dead, and 12 of 32 rows were doubled."""
    monkeypatch.setattr(lease, "WATCH_EVERY", 0.5)
    monkeypatch.setattr(lease, "EXPIRES_AFTER", 2.0)
    monkeypatch.setattr(lease, "SILENT_FOR", 2.0)
    here, process = holding
    with pytest.raises(OutputBusy, match="run theirs"), Lease(local, "mine"):
        pass
    process.kill()
    process.wait()
    assert here == (live_holder(local) is None)
    started = time.monotonic()
    with Lease(local, "mine"):
        assert (time.monotonic() - started < 2.0) is here
        holder = live_holder(local)
        assert holder is not None and holder["run"] == "mine"


def others(local: Store, **changed: Any) -> bytes:
    """The lease as it is now, with other facts."""
    return json.dumps({**json.loads(local.read(lease.KEY)), **changed}).encode()


@pytest.mark.parametrize(
    ("changed", "gone"),
    [
        ({}, False),
        ({"process_started": "1"}, True),  # the number is another process's now
        ({"pid": 2**22 + 1}, True),
        ({"pid": 2**70}, True),
        ({"pid_namespace": "pid:[1]", "pid": 2**22 + 1}, None),
        ({"boot": "other", "pid": 2**22 + 1}, None),
        ({"host": "other", "pid": 2**22 + 1}, None),
        ({"pid_namespace": ""}, None),
    ],
)
def test_what_proves_a_death(local: Store, changed: dict[str, Any], gone: bool | None) -> None:
    with Lease(local, "mine"):
        holder = lease._holder(local)
        assert holder is not None
        assert lease._is_dead({**holder, **changed}) is gone


@pytest.mark.slow
def test_who_lost_a_lease_finds_out(begun: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next renewal; what the other run wrote stays as it is."""
    monkeypatch.setattr(lease, "FIRST_LOOK", 0.05)
    monkeypatch.setattr(lease, "RENEW_EVERY", 0.3)
    theirs = b""
    with (
        pytest.raises(LeaseLost, match=r"run theirs .* has taken"),
        Lease(begun.store, "mine") as held,
    ):
        renewed = begun.store.read(lease.KEY)
        while begun.store.read(lease.KEY) == renewed:  # a renewal that is under way would win
            time.sleep(0.01)
        held.require()
        theirs = others(begun.store, run="theirs", id="theirs")
        begun.store.write(lease.KEY, theirs)
        time.sleep(1)
        held.require()
    assert begun.store.read(lease.KEY) == theirs


def test_who_lost_a_lease_since_it_was_renewed(begun: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Incident: a run that ended before its next renewal said 0, and released the lease of who had taken it over."""
    monkeypatch.setattr(lease, "FIRST_LOOK", 100.0)
    with Lease(begun.store, "mine") as held:
        held.renew()
        theirs = others(begun.store, run="theirs", id="theirs")
        begun.store.write(lease.KEY, theirs)
        with pytest.raises(LeaseLost, match=r"run theirs .* has taken"):
            held.renew()
    assert begun.store.read(lease.KEY) == theirs


def test_a_renewal_looks_at_the_output(begun: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was moved is noticed, and gets no lease in its old place."""
    monkeypatch.setattr(lease, "FIRST_LOOK", 0.05)
    root = Path(begun.uri)
    with pytest.raises(OutputGone), Lease(begun.store, "mine", check=begun.require_same) as held:
        root.rename(root.with_name("moved"))
        time.sleep(0.5)
        held.require()
    assert not root.exists()


@pytest.mark.parametrize("content", [{"renewed": "yesterday"}, {"pid": None}, {"released": 0}, {"run": 5}])
def test_a_damaged_lease_holds_nobody_up(local: Store, content: dict[str, Any]) -> None:
    """Nor does it end in a traceback."""
    with Lease(local, "theirs"):
        damaged = others(local, **content)
    local.write(lease.KEY, damaged)
    assert live_holder(local) is None
    with Lease(local, "mine"):
        pass
