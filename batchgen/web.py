"""Fetches what a URI of the web names, within bounds of time and size, from no address of this machine or its cloud.

Names are resolved before anything is connected to, at every redirect, and the address that was looked at is the one
that is asked: a name that changes its mind leads nowhere else. Knows nothing of what is fetched.
"""

import base64
import http.client
import ipaddress
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from batchgen.errors import InputError, WebError
from batchgen.version import __version__

__all__ = ["fetch"]

REDIRECTS = 5
LOOKUPS = 128  # of names, at once, with those that are left behind; resolvers may take minutes to give up
_SERVICES = frozenset(  # of clouds, for their machines alone, besides the link-local ones
    map(ipaddress.ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"))
)
_LATER = frozenset({http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_EARLY, http.HTTPStatus.TOO_MANY_REQUESTS})
_PAUSES = (1.0, 4.0)  # seconds, before a server in trouble is asked again
_MOVED = frozenset({301, 302, 303, 307, 308})
_seats = threading.BoundedSemaphore(LOOKUPS)


def fetch(uri: str, *, most: int, seconds: float, anywhere: bool = False) -> bytes:
    """What a URI names.

    Args:
        uri: http:// or https://; user and password in it are given to that very host alone.
        most: bytes; what is larger is refused.
        seconds: for each try as a whole, from the first look-up of a name through all redirects to the last byte.
        anywhere: ask this machine, too, and others that only it can reach: of a URI that the job's owner named.

    Raises:
        InputError: it leads where nothing is asked, is too large, too slow, or not there.
        WebError: no server answers, or one says that it is busy or broken, again and again.
    """
    for pause in _PAUSES:
        with suppress(WebError):
            return _followed(uri, most=most, seconds=seconds, anywhere=anywhere)
        time.sleep(random.uniform(0.5, 1.0) * pause)
    return _followed(uri, most=most, seconds=seconds, anywhere=anywhere)


def _followed(uri: str, *, most: int, seconds: float, anywhere: bool) -> bytes:
    """As `fetch`, asked once: what a URI names, or what the servers that it leads to send to."""
    place, host, deadline = uri, _split(uri, uri).netloc, time.monotonic() + seconds
    for _ in range(REDIRECTS + 1):
        try:
            parts = _split(place, uri)
            found = _ask(parts, most=most, deadline=deadline, anywhere=anywhere, known=parts.netloc == host)
        except TimeoutError as error:
            raise InputError(f"{uri}: the server took longer than {seconds:g} seconds") from error
        except (InputError, WebError) as error:
            raise type(error)(f"{uri} {error}") from None
        except (OSError, http.client.HTTPException) as error:
            raise WebError(f"{uri}: {str(error) or type(error).__name__}") from error
        except ValueError as error:
            raise InputError(f"{uri}: the server answers in no way that can be read ({error})") from error
        if isinstance(found, bytes):
            return found
        try:
            place = urljoin(place, found)
        except ValueError as error:
            raise InputError(f"{uri}: the server sends to what is no URL ({error})") from None
    raise InputError(f"{uri}: the server sends from one place to the next, more than {REDIRECTS} times")


def _split(place: str, uri: str) -> SplitResult:
    try:
        return urlsplit(place)
    except ValueError as error:
        raise InputError(f"{uri}: {place} is no URL ({error})") from None


def _ask(parts: SplitResult, *, most: int, deadline: float, anywhere: bool, known: bool) -> bytes | str:
    """The bytes, or the place to which the server sends.

    Raises:
        InputError: it cannot be had; the text goes on after the URI.
        WebError: it may be had later.
        TimeoutError: it takes too long.
    """
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"leads to {parts.scheme or 'a'}:// place that is not asked")
    connection = http.client.HTTPConnection(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    headers = {"User-Agent": f"batchgen/{__version__}", "Accept-Encoding": "identity", "Connection": "close"}
    if parts.username is not None and known:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    address = _address(connection.host, connection.port, deadline, anywhere=anywhere)
    with _within(deadline, address) as opened, closing(connection):
        secure = parts.scheme == "https"
        connection.sock = (
            ssl.create_default_context().wrap_socket(opened, server_hostname=parts.hostname) if secure else opened
        )
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        host = parts.netloc.rpartition("@")[2]
        connection.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": host, **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        if answer.status in _MOVED and (target := answer.getheader("Location")):
            return target
        if answer.status != http.HTTPStatus.OK:
            said = f"is not to be had: the server says {answer.status} {answer.reason}"
            raise (WebError if answer.status >= 500 or answer.status in _LATER else InputError)(said)
        if int(answer.getheader("Content-Length") or 0) > most or len(data := answer.read(most + 1)) > most:
            raise InputError(f"is larger than {most >> 20} MiB")
        return data


@contextmanager
def _within(deadline: float, address: tuple[str, int]) -> Iterator[socket.socket]:
    """A connection that is cut off at the deadline, however busily it drips.

    Raises:
        TimeoutError: it was.
    """
    with socket.create_connection(address, timeout=_left(deadline)) as opened, opened.dup() as watched:
        ended = threading.Event()

        def cut() -> None:
            ended.set()
            with suppress(OSError):
                watched.shutdown(socket.SHUT_RDWR)  # encryption takes the other one over

        timer = threading.Timer(_left(deadline), cut)
        timer.daemon = True
        timer.start()
        try:
            yield opened
        except (OSError, http.client.HTTPException, ValueError):
            if ended.is_set():
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()
        if ended.is_set():
            raise TimeoutError


def _left(deadline: float) -> float:
    """Seconds until then, of time.monotonic().

    Raises:
        TimeoutError: there are none.
    """
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left


def _address(host: str, port: int, deadline: float, *, anywhere: bool) -> tuple[str, int]:
    """An address of a host that may be asked.

    Raises:
        InputError: none of its addresses may.
        TimeoutError: nobody says in time which it has.
        OSError: it has none.
    """
    found = _look_up(host, port, deadline)
    if not anywhere and (near := next(filter(_is_near, found), None)) is not None:
        raise InputError(f"leads to {near}, an address of this machine or of its cloud, which is not asked")
    return found[0], port


def _look_up(host: str, port: int, deadline: float) -> list[str]:
    """Addresses of a host.

    No look-up can be cut short: one that takes longer is left behind, and is one of the few until it ends.
    """
    found: Future[list[str]] = Future()

    def ask() -> None:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.set_result([str(entry[4][0]) for entry in entries])
        except Exception as error:  # it is the caller's
            found.set_exception(error)
        finally:
            _seats.release()

    if not _seats.acquire(timeout=_left(deadline)):
        raise TimeoutError
    try:
        threading.Thread(target=ask, name=f"look up {host}", daemon=True).start()
    except RuntimeError as error:  # the machine has no more threads
        _seats.release()
        raise OSError(str(error)) from error
    return found.result(timeout=_left(deadline))


def _is_near(address: str) -> bool:
    """Whether an address is this machine's own, a cloud's service for it, or none of one host."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if inner is None and found in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return _is_near(str(inner))
    if found in _SERVICES or any(
        (found.is_loopback, found.is_link_local, found.is_unspecified, found.is_multicast, found.is_reserved)
    ):
        return True
    family = socket.AF_INET if found.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(found), 0))  # which only an address of this machine's allows
        except OSError:
            return False
    return True
