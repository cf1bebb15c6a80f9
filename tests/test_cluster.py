"""Which Ray cluster a run uses, what it says of it, and what becomes of it while the cluster grows and shrinks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import OFFLINE, RunCli, WriteManifest, go_without, running_node, running_ray, wait_for
from PIL import Image

from batchgen import version
from batchgen.engine.capacity import described
from batchgen.engine.cluster import cluster
from batchgen.errors import ClusterError

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}


@pytest.mark.parametrize(
    ("given", "variable", "named"),
    [
        (None, "http://a:8265", r"http://a:8265 \(from RAY_ADDRESS\) is where jobs are submitted"),
        ("auto", "http://a:8265", r"http://a:8265 \(from RAY_ADDRESS\)"),  # as Ray means it
        ("http://b:8265", "http://a:8265", "http://b:8265 is where"),
        (None, "nonsense", r"at nonsense \(from RAY_ADDRESS\)"),
    ],
)
def test_the_address_is_taken(given: str | None, variable: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Incident: inside a submitted job a second, local Ray started beside the cluster."""
    monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(ClusterError, match=named), cluster(given, 1, print):
        pass


def test_amounts_as_people_say_them() -> None:
    assert described({"CPU": 1, "GPU": 0}) == "1 core, no GPU"
    assert described({"CPU": 0.5, "GPU": 2, "memory": 3 * 2**30}) == "0.5 cores, 2 GPUs, 3 GiB"


UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]

WORK = """
import sys, time
from batchgen.engine.cluster import cluster
from batchgen.engine.loop import Control, drive
from batchgen.engine.pool import Pool
from batchgen.engine.queue import WorkQueue
from batchgen.job import WorkerResources
from batchgen.work import Work

class Second:
    needs, key = "", "sleep"

    def __init__(self, id):
        self.id = id

    def split(self):
        return ()

class Sleeper:
    def ready(self, node):
        pass

    def run(self, unit):
        time.sleep(1)
        return unit.id

    def stored(self):
        return ()

    def progress(self):
        return {}

def say(line):
    print(line, file=sys.stderr, flush=True)

with cluster(None, 1, say) as capacity:
    pool = Pool(Work(make_worker=Sleeper, at_once=1), 1, WorkerResources(wait_minutes=5), say)
    say(f"{capacity}; {pool.uses}")
    drive(
        WorkQueue(map(Second, 'abcd')), pool, Control(), recovered=lambda unit: None, failed=None,
        committed=lambda unit, receipt: say("done"), retried=lambda unit, why: say("again"),
        progressed=lambda workers: None,
    )
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_with_a_token_that_grows_and_shrinks(
    batchgen: RunCli, write_manifest: WriteManifest, model_configs: Path, tmp_path: Path
) -> None:
    """A head without cores: refused without a token, waited for in vain; then a node comes, dies, and another comes."""
    write_manifest("rows.csv", [{"prompt": "a"}])
    job = tmp_path / "job.toml"
    job.write_text(f'manifest = "rows.csv"\nmodel = "{model_configs}"\noutput = "out"\n[worker]\nwait_minutes = 0.02\n')
    with running_ray("--num-cpus=0", env=TOKEN) as address:
        refused = batchgen("run", job, env={"RAY_ADDRESS": address})
        assert refused.returncode == 4
        assert refused.stderr.count("\n") == 1 and "export RAY_AUTH_MODE=token" in refused.stderr
        env = {**TOKEN, "RAY_ADDRESS": address}
        in_vain = batchgen("run", job, env=env)
        assert in_vain.returncode == 4
        assert "no room for workers in 0.02 minutes" in in_vain.stderr
        assert "(failed: no room for workers" in batchgen("verify", job).stdout

        log = tmp_path / "log"
        with log.open("w") as stream:
            run = subprocess.Popen(
                [sys.executable, "-c", WORK], env={**os.environ, **OFFLINE, **env}, stdout=stream, stderr=stream
            )
        node = (f"--address={address}", "--num-cpus=1", "--disable-usage-stats")
        try:
            wait_for(log, "waiting for one", seconds=120)
            with running_node(*node, env=TOKEN) as first:
                wait_for(log, "done\n", seconds=120)
                for child in psutil.Process(first.pid).children(recursive=True):
                    child.kill()
                wait_for(log, "to be replaced", seconds=120)
            with running_node(*node, env=TOKEN):
                assert run.wait(120) == 0
        finally:
            run.kill()
    said = log.read_text()
    assert f"Ray at {address} (from RAY_ADDRESS): 1 node, no core, no GPU; 0 workers" in said
    assert " died with 1 worker, to be replaced" in said
    assert (said.count("done\n"), said.count("again\n")) == (4, 1)


@pytest.mark.slow
@pytest.mark.ray
def test_nodes_that_share_no_folder_or_have_other_code_are_refused(
    batchgen: RunCli, write_manifest: WriteManifest, tiny_model: Path, tmp_path: Path
) -> None:
    """Incident: two nodes with a disk each, "24 of 24 rows done", and half of the images on a disk nobody looks at.

    The second node has a file system of its own over one folder, where the output lies first, and then an init image;
    the third a checkout of the same version with a difference, by which a run once ended in an AttributeError.
    """
    apart = tmp_path / "apart"
    apart.mkdir()
    over = [*UNSHARE, "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(apart)]
    if subprocess.run([*over, "true"], capture_output=True, check=False).returncode != 0:
        go_without("mount namespaces are not permitted here")
    Image.effect_noise((64, 64), 80).convert("RGB").save(apart / "start.png")
    plain = write_manifest("plain.jsonl", [{"prompt": "a", "steps": 2}] * 2)
    image = write_manifest(
        "image.jsonl", [{"prompt": "a", "steps": 2, "image": "apart/start.png", "strength": 0.5}] * 2
    )
    with running_ray("--num-cpus=0") as address:
        common = ("--model", tiny_model, "--address", address)
        with running_node(f"--address={address}", "--num-cpus=1", "--disable-usage-stats", within=over):
            for manifest, output, named in ((plain, apart / "out", apart / "out"), (image, "out", apart / "start.png")):
                done = batchgen("run", manifest, "--output", output, *common, cwd=tmp_path)
                assert done.returncode == 2, done.stderr
                assert re.search(rf"error: node [\d.]+ \(\w+\): .*{re.escape(str(named))}", done.stderr)
                assert "give a folder that all nodes share" in done.stderr
                assert "rows are not made (failed: node" in batchgen("verify", output, cwd=tmp_path).stdout
        for file in Path(version.__file__).parent.rglob("*.py"):
            copy = tmp_path / "other" / file.relative_to(Path(version.__file__).parents[1])
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes() + b"# other\n" * (file.name == "work.py"))
        other = {"PYTHONPATH": str(tmp_path / "other")}
        with running_node(f"--address={address}", "--num-cpus=1", "--disable-usage-stats", env=other):
            done = batchgen("run", plain, "--output", "fresh", *common, cwd=tmp_path)
            assert done.returncode == 2, done.stderr
            assert re.search(r"error: node [\d.]+ \(\w+\): its batchgen is .*; install the same on all", done.stderr)


LISTENING = """
import psutil, sys
from batchgen.engine.cluster import cluster
with cluster("local", 1, print):
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        for one in process.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN:
                print(one.laddr.ip, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_ray_that_starts_here_listens_to_this_machine_alone() -> None:
    """Incident: its head and workers listened to every network that the machine is in. Ray takes 10 s to start."""
    done = subprocess.run([sys.executable, "-c", LISTENING], capture_output=True, text=True, timeout=300, check=True)
    places = {line.removeprefix("::ffff:") for line in done.stderr.split() if ":" in line or line[:1].isdigit()}
    assert places == {"127.0.0.1"}
