"""How much of its speed does a run keep on an object store that fails one request in twenty?

`python jobs/bench/faults.py [--model builtin] [--rows 192] [--steps 25] [--share 0.05] [--repeats 2]`

Runs of one worker, clean and through faults by turns, against a real S3 server behind the proxy of the tests, so it
needs a checkout and what `.ci/install-system-packages` installs. Half of the faults are SlowDown, the others errors of
the server, and resets in the middle of an upload. The rate is that between a run's first and last commit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from machine import batchgen, describe, describe_line

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from s3_faults import Fault, Kind, fault_proxy
from s3_server import S3Server, running_server

from batchgen.storage import open_store

GOAL = 0.8  # of the clean rate


def faults(share: float) -> list[Fault]:
    """A share of all requests fails; each fault draws from the requests that those before it let through."""
    return [
        Fault(kind=Kind.UNAVAILABLE, times=None, probability=share / 2),
        Fault(kind=Kind.ERROR, status=500, code="InternalError", times=None, probability=share / 4),
        Fault(kind=Kind.RESET, method="PUT", after_bytes=2_000, times=None, probability=share / 4),
    ]


def rate(server: S3Server, manifest: Path, options: argparse.Namespace, share: float) -> tuple[float, float]:
    """Images a second of one run, and the share of its requests that failed.

    Raises:
        SystemExit: the run, or `verify --deep` after it, failed.
    """
    uri = f"s3://bench/{uuid.uuid4().hex}"
    env = {**os.environ, **server.env(), "OMP_NUM_THREADS": "1"}
    with fault_proxy(server, faults(share), seed=1) as proxy:
        command = batchgen(
            *("run", str(manifest), "--output", uri, "--model", options.model, "--workers", "1"),
            *("--batch-size", "4", "--shard-rows", "8"),
        )
        env["AWS_ENDPOINT_URL"] = proxy.server.endpoint
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        failed = sum(request.fault is not None for request in proxy.requests) / len(proxy.requests)
    env["AWS_ENDPOINT_URL"] = server.endpoint
    sound = subprocess.run(batchgen("verify", uri, "--deep"), env=env, capture_output=True, text=True, check=False)
    if done.returncode or sound.returncode:
        raise SystemExit(done.stderr + sound.stdout + sound.stderr)
    login = {"key": server.access_key, "secret": server.secret_key, "endpoint_url": server.endpoint}
    store = open_store(uri, login)
    receipts = [json.loads(store.read(f".batchgen/receipts/{name}")) for name in store.names(".batchgen/receipts")]
    receipts.sort(key=lambda receipt: receipt["finished"])
    seconds = receipts[-1]["finished"] - receipts[0]["finished"]
    return sum(receipt["done"] for receipt in receipts[1:]) / seconds, failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both rates and their ratio; 1 where that misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--share", type=float, default=0.05, help="of the requests, that fail")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args(arguments)
    print(describe_line(describe()))
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        manifest = Path(folder, "rows.jsonl")
        rows = [{"prompt": f"a cat {n}", "seed": n, "steps": options.steps} for n in range(options.rows)]
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        Path(folder, "s3").mkdir()
        found: dict[float, list[float]] = {0.0: [], options.share: []}
        with running_server(Path(folder, "s3")) as server:
            server.create_bucket("bench")
            for _ in range(options.repeats):
                for share, rates in found.items():
                    images, failed = rate(server, manifest, options, share)
                    rates.append(images)
                    print(f"{failed:.1%} of the requests failed: {images:.2f} images/s", flush=True)
    clean, faulty = (statistics.median(rates) for rates in found.values())
    print(f"ratio {faulty / clean:.2f} of {clean:.2f} images/s, goal {GOAL}")
    return 0 if faulty >= GOAL * clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
