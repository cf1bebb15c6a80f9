"""The S3 server of the tests is a strict one, and the proxy before it does exactly the harm that it is asked for."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import s3fs
from botocore.exceptions import ClientError, HTTPClientError
from s3_faults import Fault, Kind, fault_proxy
from s3_server import S3Server, running_server

pytestmark = pytest.mark.s3

BUCKET = "server-under-test"


def client(server: S3Server) -> Any:
    """An S3 client that tries once, so that every fault is seen and not mended."""
    return server.client(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=10)


def filesystem(server: S3Server, **options: str) -> Any:
    return s3fs.S3FileSystem(
        **({"key": server.access_key, "secret": server.secret_key, "endpoint_url": server.endpoint} | options),
        skip_instance_cache=True,
        use_listings_cache=False,
    )


def status(error: ClientError) -> int:
    code: int = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return code


def write(s3: Any, key: str, body: bytes = b"image", **conditions: str) -> None:
    s3.put_object(Bucket=BUCKET, Key=key, Body=body, **conditions)


def read(s3: Any, key: str) -> bytes:
    body: bytes = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return body


@pytest.fixture(autouse=True, scope="module")
def bucket(s3_server: S3Server) -> Iterator[None]:
    """The server keeps all objects in memory for the whole test session, so what was written here goes again."""
    s3_server.create_bucket(BUCKET)
    yield
    filesystem(s3_server).rm(BUCKET, recursive=True)


def test_environment_alone_finds_the_server(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    fs.pipe_file(f"{BUCKET}/by-environment", b"found")
    assert fs.cat_file(f"{BUCKET}/by-environment") == b"found"


@pytest.mark.parametrize("wrong", [{"secret": "not-the-secret"}, {"key": "NOBODY"}], ids=["secret", "key"])
def test_wrong_credentials_are_refused(s3_server: S3Server, wrong: dict[str, str]) -> None:
    with pytest.raises(PermissionError) as refusal:
        filesystem(s3_server, **wrong).pipe_file(f"{BUCKET}/forbidden", b"x")
    assert isinstance(refusal.value.__cause__, ClientError)
    assert status(refusal.value.__cause__) == 403
    assert not filesystem(s3_server).exists(f"{BUCKET}/forbidden")


def test_create_only_write_is_refused_the_second_time(s3_server: S3Server) -> None:
    fs = filesystem(s3_server)
    fs.pipe_file(f"{BUCKET}/marker", b"first", mode="create")
    with pytest.raises(OSError) as refusal:
        fs.pipe_file(f"{BUCKET}/marker", b"second", mode="create")
    assert isinstance(refusal.value.__cause__, ClientError)
    assert status(refusal.value.__cause__) == 412
    assert fs.cat_file(f"{BUCKET}/marker") == b"first"


def test_server_is_gone_after_its_block(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        address = (urlsplit(server.endpoint).hostname, urlsplit(server.endpoint).port)
        socket.create_connection(address, timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)


def test_proxy_without_faults_changes_nothing(s3_server: S3Server) -> None:
    with fault_proxy(s3_server, []) as proxy:
        fs = filesystem(proxy.server)
        body = bytes(range(256)) * 4096
        fs.pipe_file(f"{BUCKET}/plain/ü %20.bin", body)
        assert fs.cat_file(f"{BUCKET}/plain/ü %20.bin") == body
        assert fs.ls(f"{BUCKET}/plain", detail=False) == [f"{BUCKET}/plain/ü %20.bin"]
    assert ("PUT", f"{BUCKET}/plain/ü %20.bin") in [(seen.method, seen.key) for seen in proxy.requests]


def test_unavailable_is_answered_as_often_as_asked_and_only_for_its_keys(s3_server: S3Server) -> None:
    with fault_proxy(s3_server, [Fault(kind=Kind.UNAVAILABLE, method="PUT", key="*/busy/*", times=2)]) as proxy:
        s3 = client(proxy.server)
        for _ in range(2):
            with pytest.raises(ClientError) as refusal:
                write(s3, "busy/a.png")
            assert status(refusal.value) == 503
            write(s3, "idle/a.png")
        with pytest.raises(ClientError):
            read(s3, "busy/a.png")  # the server never saw it
        write(s3, "busy/a.png")
        assert read(s3, "busy/a.png") == b"image"
    assert proxy.met(Kind.UNAVAILABLE) == 2


def test_s3fs_mends_an_unavailable_server(s3_server: S3Server) -> None:
    with fault_proxy(s3_server, [Fault(kind=Kind.UNAVAILABLE, method="PUT")]) as proxy:
        filesystem(proxy.server).pipe_file(f"{BUCKET}/mended", b"x")
    assert [seen.fault for seen in proxy.requests if seen.method == "PUT"] == [Kind.UNAVAILABLE, None]


def test_reset_in_the_middle_of_an_upload_stores_nothing(s3_server: S3Server) -> None:
    body = b"x" * 1_000_000
    with fault_proxy(s3_server, [Fault(kind=Kind.RESET, method="PUT", after_bytes=300_000)]) as proxy:
        s3 = client(proxy.server)
        with pytest.raises(HTTPClientError):
            write(s3, "reset/up.bin", body)
        with pytest.raises(ClientError):
            read(s3, "reset/up.bin")
        write(s3, "reset/up.bin", body)
        assert read(s3, "reset/up.bin") == body


def test_reset_in_the_middle_of_a_download_is_an_error(s3_server: S3Server) -> None:
    write(client(s3_server), "reset/down.bin", b"x" * 1_000_000)
    with fault_proxy(s3_server, [Fault(kind=Kind.RESET, method="GET", after_bytes=300_000)]) as proxy:
        s3 = client(proxy.server)
        with pytest.raises(HTTPClientError):
            read(s3, "reset/down.bin")
        assert len(read(s3, "reset/down.bin")) == 1_000_000


def test_delay_passes_the_request_on_later(s3_server: S3Server) -> None:
    with fault_proxy(s3_server, [Fault(kind=Kind.DELAY, method="PUT", seconds=0.5)]) as proxy:
        start = time.monotonic()
        write(client(proxy.server), "late.png")
        assert time.monotonic() - start >= 0.5
    assert read(client(s3_server), "late.png") == b"image"


def test_lost_answer_looks_like_a_failure_of_a_write_that_landed(s3_server: S3Server) -> None:
    with fault_proxy(s3_server, [Fault(kind=Kind.LOST_ANSWER, method="PUT", key="*/once")]) as proxy:
        s3 = client(proxy.server)
        with pytest.raises(HTTPClientError):
            write(s3, "once", b"mine", IfNoneMatch="*")
        assert read(s3, "once") == b"mine"
        with pytest.raises(ClientError) as refusal:
            write(s3, "once", b"mine again", IfNoneMatch="*")
        assert status(refusal.value) == 412


def test_lost_answer_lets_a_refusal_through(s3_server: S3Server) -> None:
    write(client(s3_server), "taken")
    with fault_proxy(s3_server, [Fault(kind=Kind.LOST_ANSWER, method="PUT", key="*/taken")]) as proxy:
        with pytest.raises(ClientError) as refusal:
            write(client(proxy.server), "taken", IfNoneMatch="*")
        assert status(refusal.value) == 412


def test_draws_repeat_with_the_seed(s3_server: S3Server) -> None:
    def outcomes(seed: int) -> list[bool]:
        fault = Fault(kind=Kind.UNAVAILABLE, times=None, probability=0.5)
        with fault_proxy(s3_server, [fault], seed=seed) as proxy:
            s3 = client(proxy.server)
            for number in range(12):
                with suppress(ClientError):
                    write(s3, f"drawn/{number}")
        return [seen.fault is None for seen in proxy.requests]

    first = outcomes(seed=1)
    assert set(first) == {True, False}
    assert outcomes(seed=1) == first
    assert outcomes(seed=2) != first
