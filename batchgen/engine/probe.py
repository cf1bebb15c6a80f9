"""Asks whether a Ray cluster answers at an address: `python -m batchgen.engine.probe ADDRESS`.

In a process of its own: Ray's client tries for minutes, writes warnings past Python's streams, and aborts the process
where it lacks a token. Ends silently where a cluster answers; else prints the reason in one line.
"""

import socket
import sys

from batchgen.errors import one_line

NO_TOKEN = "no token that the cluster accepts"
CONNECT_TIMEOUT = 5.0  # seconds; for the head to accept a connection


def _probe(address: str) -> str | None:
    """Why no cluster can be used at the address; None where one answers."""
    from ray._private import services
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError, RayError

    try:
        ensure_token_if_auth_enabled(None, create_token_if_missing=False)
        found = services.canonicalize_bootstrap_address(address)
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()
        GcsClient(address=found)
    except AuthenticationError:
        return NO_TOKEN
    except (OSError, ValueError, RayError) as error:
        return one_line(error)
    return None


if __name__ == "__main__":
    if (reason := _probe(sys.argv[1])) is not None:
        print(reason)
