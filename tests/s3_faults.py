"""Faults between an S3 client and its server: a proxy that refuses, delays, resets, or loses the answer to a write.

It speaks just enough HTTP/1.1 to know a request's method, key and body, and serves one request a connection. It runs in
a thread of the test's process, where other processes on the machine reach it too. It knows nothing of batchgen.
"""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from urllib.parse import unquote, urlsplit

from s3_server import S3Server

PIECE_BYTES = 64 * 1024
ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>injected by the tests</Message></Error>"


class Kind(StrEnum):
    """What can go wrong with one request."""

    UNAVAILABLE = "503"  # refused with SlowDown; the server never sees the request
    ERROR = "error"  # refused with the fault's `status` and `code`; the server never sees the request
    RESET = "reset"  # connection reset after `after_bytes` of the body: the answer's for GET, otherwise the request's
    TRUNCATED = "truncated"  # the answer's body ends after `after_bytes`, and the connection as if all were said
    DELAY = "delay"  # passed on after `seconds`
    LOST_ANSWER = "lost answer"  # the server answered with 2xx, the client sees a reset instead


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One kind of trouble, and the requests that it happens to."""

    kind: Kind
    method: str = "*"  # GET, PUT, ... or * for any
    key: str = "*"  # pattern over "bucket/key"; * also crosses slashes
    times: int | None = 1  # requests that meet it, after which it is over; None for no end
    probability: float = 1.0  # share of the matching requests that meet it, drawn from the proxy's seed
    after_bytes: int = 0
    seconds: float = 0.0
    status: int = 503
    code: str = "SlowDown"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the proxy saw it, and what was done to it."""

    method: str
    key: str
    fault: Kind | None
    part: str = ""  # the bytes that were asked for, as in its Range header; empty for all


@dataclass(kw_only=True, slots=True)
class FaultProxy:
    """A running proxy: the server as seen through it, and the requests seen so far in order of arrival."""

    server: S3Server
    requests: list[Request] = field(default_factory=list)

    def met(self, kind: Kind) -> int:
        """How many requests met this kind of fault."""
        return sum(request.fault is kind for request in self.requests)


@contextmanager
def fault_proxy(server: S3Server, faults: Sequence[Fault], *, seed: int = 0) -> Iterator[FaultProxy]:
    """Runs a proxy in front of `server` until the block ends.

    A request meets the first fault in `faults` that matches it and is not over. The same seed draws the same as long as
    the requests arrive in the same order.
    """
    line = _Line(server=server, faults=faults, seed=seed)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        listener = runner.run(asyncio.start_server(line.connection, "127.0.0.1", 0))
        port: int = listener.sockets[0].getsockname()[1]
        line.proxy.server = replace(server, endpoint=f"http://127.0.0.1:{port}")
        thread = threading.Thread(target=loop.run_forever, name="fault-proxy")
        thread.start()
        try:
            yield line.proxy
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            listener.close()


class _Line:
    """The proxy's side that lives in its thread."""

    def __init__(self, *, server: S3Server, faults: Sequence[Fault], seed: int) -> None:
        self.proxy = FaultProxy(server=server)
        self._upstream = urlsplit(server.endpoint)
        self._faults = faults
        self._left = [fault.times for fault in faults]
        self._random = random.Random(seed)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one client: one request, then the connection is closed or reset."""
        try:
            await self._request(reader, writer)
            await writer.drain()
            writer.close()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()  # one side or the proxy itself went away: the other learns it the same way

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        fault = self._meet(method, unquote(urlsplit(target).path).removeprefix("/"), headers.get("range", ""))
        kind = fault.kind if fault else None
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = _body(reader, headers)

        if fault and kind in (Kind.UNAVAILABLE, Kind.ERROR):
            async for _ in body:
                pass
            text = ERROR.format(fault.code)
            writer.write(
                f"HTTP/1.1 {fault.status} Refused\r\nContent-Type: application/xml\r\nConnection: close\r\n"
                f"Content-Length: {len(text)}\r\n\r\n{'' if method == 'HEAD' else text}".encode()
            )
            return
        if fault and kind is Kind.DELAY:
            await asyncio.sleep(fault.seconds)

        # One request a connection spares the proxy from having to find where an answer ends.
        kept = [line for line in lines if line.partition(":")[0].lower() not in ("connection", "expect")]
        up_reader, up_writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        try:
            up_writer.write("\r\n".join([first, *kept, "Connection: close", "", ""]).encode("latin-1"))
            cut = fault.after_bytes if fault and kind is Kind.RESET else None
            await _pass_on(body, up_writer, cut if method != "GET" else None)
            answer = await up_reader.readuntil(b"\r\n\r\n")
            if kind is Kind.LOST_ANSWER and answer.split(b" ", 2)[1].startswith(b"2"):
                raise ConnectionResetError
            writer.write(answer)
            if fault and kind is Kind.TRUNCATED:
                writer.write((await up_reader.read(PIECE_BYTES))[: fault.after_bytes])
                return
            await _pass_on(_pieces(up_reader), writer, cut if method == "GET" else None)
        finally:
            up_writer.transport.abort()

    def _meet(self, method: str, key: str, part: str) -> Fault | None:
        """The fault that this request meets, now one time fewer, and a note of both."""
        for index, fault in enumerate(self._faults):
            left = self._left[index]
            if left == 0 or fault.method not in ("*", method) or not fnmatchcase(key, fault.key):
                continue
            if self._random.random() < fault.probability:
                self._left[index] = None if left is None else left - 1
                self.proxy.requests.append(Request(method, key, fault.kind, part))
                return fault
        self.proxy.requests.append(Request(method, key, None, part))
        return None


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """A request's body as it is on the wire, with its chunk marks where it is chunked."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        size = -1
        while size != 0:
            mark = await reader.readline()
            size = int(mark.split(b";")[0], 16)
            yield mark + await reader.readexactly(size + 2)
    left = int(headers.get("content-length", 0))
    while left > 0:
        piece = await reader.read(min(left, PIECE_BYTES))
        if not piece:
            raise ConnectionResetError
        left -= len(piece)
        yield piece


async def _pieces(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(PIECE_BYTES):
        yield piece


async def _pass_on(body: AsyncIterator[bytes], writer: asyncio.StreamWriter, cut: int | None) -> None:
    """Writes a body; with `cut`, raises ConnectionResetError after that many bytes, or at the body's end if shorter."""
    passed = 0
    async for piece in body:
        writer.write(piece if cut is None else piece[: cut - passed])
        await writer.drain()
        passed += len(piece)
        if cut is not None and passed >= cut:
            break
    if cut is not None:
        raise ConnectionResetError
