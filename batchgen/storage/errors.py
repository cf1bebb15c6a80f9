"""What errors of file systems and object stores mean, in words and for trying again. Knows nothing of how they come."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from batchgen.errors import AlreadyExists, NotFound, StoreError, StoreRefused
from batchgen.storage.throttle import Trouble

__all__ = ["place_named", "reason", "refusal", "service_code", "trouble"]

_BUSY = {
    "429",
    "503",
    "BandwidthLimitExceeded",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_AWAY = {
    "500",
    "502",
    "504",
    "BadDigest",  # the upload was damaged on its way
    "ConditionalRequestConflict",  # another create of the key is under way: its end decides
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "XAmzContentSHA256Mismatch",
}
# by name: what has no `response` is no answer; names of botocore, aiohttp, and Python
_NO_ANSWER = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseParserError",
}

_EXPIRED = "the keys have expired; renew them for every machine of the run, and run again"
_KEYS = "check credentials and permissions"
_FULL = "free some space or raise the quota, and run again"
_CODES = {
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it, and run again",
    "InsufficientStorage": _FULL,
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
    "403": _KEYS,
    "AccessDenied": _KEYS,
    "AllAccessDisabled": _KEYS,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
}
_ERRNOS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: "make the place writable again, or check why its disk went read-only, and run again",
    errno.ENOTSUP: "commits would not be safe there; choose another place",
    errno.EFBIG: "the file system or a limit (ulimit -f) takes no file of this size; choose another place",
}
_NO_KEYS = {"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "SSOTokenLoadError"}
_EXPIRED_KEYS = {"CredentialRetrievalError", "UnauthorizedSSOTokenError"}


def service_code(error: BaseException | None) -> str:
    """What the service itself called the error (NoSuchBucket, 412, ...): s3fs hides it behind the plain errno."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def trouble(error: Exception) -> Trouble | None:
    """Whether the same request may succeed a little later, and what that asks for; None where it will not."""
    if code := service_code(error):
        return Trouble.BUSY if code in _BUSY else Trouble.AWAY if code in _AWAY else None
    if isinstance(error, TimeoutError) or _names(error) & _NO_ANSWER:
        return Trouble.AWAY
    return None


def refusal(error: Exception) -> str | None:
    """What to do where a store takes nothing, or not from us, until somebody does something; None for other errors."""
    if (advice := _CODES.get(service_code(error))) is not None:
        return advice
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return _ERRNOS[error.errno]
    if _names(error) & _EXPIRED_KEYS:
        return _EXPIRED
    return _KEYS if isinstance(error, PermissionError) or _names(error) & _NO_KEYS else None


def reason(error: BaseException) -> str:
    """The first line of what an error says, and how often it was tried."""
    text = (getattr(error, "strerror", None) or "").strip() or service_code(error) or str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    return "; ".join([first, *getattr(error, "__notes__", [])])


def _names(error: Exception) -> set[str]:
    return {one.__name__ for one in type(error).__mro__}


@contextmanager
def place_named(place: str) -> Iterator[None]:
    """Raise the errors of file systems, which are of many libraries, as a `StoreError` whose text names the place."""
    try:
        yield
    except StoreError:
        raise
    except FileExistsError as error:
        raise AlreadyExists(f"{place} exists already") from error
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise NotFound(f"{place}: {_missing(place, error)}") from error
    except (OSError, ValueError, ImportError) as error:
        raise _store_error(place, error) from error
    except Exception as error:
        # botocore's errors have no common base that is importable without botocore
        if type(error).__module__.split(".")[0] not in {"botocore", "aiobotocore", "aiohttp", "gcsfs", "azure"}:
            raise
        raise _store_error(place, error) from error


def _store_error(place: str, error: Exception) -> StoreError:
    advice = refusal(error)
    if advice is None:
        return StoreError(f"{place}: {reason(error)}")
    denied = "access denied " if isinstance(error, PermissionError) else ""
    return StoreRefused(f"{place}: {f'{denied}({reason(error)})' if denied else reason(error)}; {advice}")


def _missing(place: str, error: OSError) -> str:
    if service_code(error) == "NoSuchBucket":
        return f"there is no bucket {place.split('/')[2]!r}; create it, or check the name and the endpoint"
    return reason(error) if isinstance(error, (NotADirectoryError, IsADirectoryError)) else "not found"
