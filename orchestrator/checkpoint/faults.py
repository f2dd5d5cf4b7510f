"""What a store's failure means: which fault it is, in one sentence for people. No effects."""

import errno
import re
from collections.abc import Iterator

from orchestrator.errors import StoreFault

MOUNT_GONE = errno.ENODEV
"""What LocalFiles raises where the mount that it found at first is no longer there."""

_BY_ERRNO = {
    StoreFault.full: (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    StoreFault.denied: (errno.EACCES, errno.EPERM, errno.EROFS),
    StoreFault.gone: (errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ESHUTDOWN, errno.ENOMEDIUM),
    StoreFault.busy: (
        errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT,
        errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.EHOSTUNREACH,
        errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENETRESET,
    ),
}  # fmt: skip
_FAULT_OF_ERRNO = {number: fault for fault, numbers in _BY_ERRNO.items() for number in numbers}
_FAULT_OF_CODE = (
    (
        re.compile(r"SlowDown|Throttl|TooManyRequests|RequestTimeout|InternalError|ServiceUnavailable"),
        StoreFault.busy,
    ),
    (re.compile(r"Expired|AccessDenied|InvalidAccessKey|SignatureDoesNotMatch|InvalidToken"), StoreFault.denied),
    (re.compile(r"NoSuchBucket"), StoreFault.gone),
    (re.compile(r"QuotaExceeded|InsufficientStorage"), StoreFault.full),
)
"""The stores' own error codes."""
_FAULT_OF_CLASS = (
    (re.compile(r"Credential|Forbidden|Unauthorized|RefreshError"), StoreFault.denied),
    (re.compile(r"Timeout|Connection|Disconnected|ClientPayload|IncompleteRead|ResponseParser"), StoreFault.busy),
)
"""Backends (botocore, aiohttp, google.auth, azure) bring classes of their own; their names say what is meant."""


def fault_of(error: BaseException) -> StoreFault:
    """Looks at the error and at those it was raised from, the innermost first: it knows best."""
    for link in reversed(list(_chain(error))):
        fault = _fault_of_one(link)
        if fault is not None:
            return fault
    return StoreFault.other


def is_expired(error: BaseException) -> bool:
    """Whether credentials had their day."""
    return any(re.search(r"expired", f"{type(link).__name__} {link}", re.IGNORECASE) for link in _chain(error))


def sentence(  # noqa: PLR0911 -- one return for each thing that can be wrong
    verb: str, where: str, error: BaseException, *, num_bytes: int | None = None, free_bytes: int | None = None
) -> str:
    """`can't write /disk/x: ...`, with a way out. `num_bytes`: what was to be written, `free_bytes`: what is left."""
    fault, number = fault_of(error), error.errno if isinstance(error, OSError) else None
    said = str(error.strerror or error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    if number == errno.EFBIG:
        return f"can't {verb} {where}: the file is too large for a limit (ulimit -f) or the file system; raise it"
    if fault is StoreFault.full:
        what = "the disk quota is used up" if number == errno.EDQUOT else "no space left"
        needed = f", it needs {num_bytes:,} bytes" if num_bytes is not None else ""
        left = f" and {free_bytes:,} are free" if free_bytes is not None else ""
        way_out = "free some, lower checkpoint.keep_last or set checkpoint.url to another place"
        return f"{what} to {verb} {where}{needed}{left}; {way_out}"
    if isinstance(error, FileNotFoundError) and fault is StoreFault.other:
        return f"can't {verb} {where}: it does not exist"
    if fault is StoreFault.denied and is_expired(error):
        return f"can't {verb} {where}: the credentials have expired; renew them on every node"
    if number == errno.EROFS:
        return f"can't {verb} {where}: the file system is read-only; mount it for writing (see dmesg for why)"
    if fault is StoreFault.denied:
        return f"can't {verb} {where}: permission denied; check the owner, the mode or the credentials ({said})"
    if fault is StoreFault.gone:
        return f"can't {verb} {where}: its mount, bucket or device is gone ({said}); bring it back"
    if number == errno.EIO and where.startswith("/"):
        return f"can't {verb} {where}: input/output error; check the disk or the file server (dmesg)"
    if fault is StoreFault.busy:
        return f"can't {verb} {where}: the store does not answer as it should ({said})"
    if number is not None:
        return f"can't {verb} {where}: {said}"
    return f"can't {verb} {where}: {said}; check the URL, the backend's package and the credentials"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _fault_of_one(error: BaseException) -> StoreFault | None:
    text = f"{_error_code(error)} {error}"
    for pattern, fault in _FAULT_OF_CODE:
        if pattern.search(text):
            return fault
    status = _http_status(error)
    if status is not None and status >= 400:
        return _fault_of_status(status)
    if isinstance(error, OSError) and error.errno in _FAULT_OF_ERRNO:
        return _FAULT_OF_ERRNO[error.errno]
    if isinstance(error, PermissionError):
        return StoreFault.denied
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    return next((fault for pattern, fault in _FAULT_OF_CLASS if pattern.search(names)), None)


def _fault_of_status(status: int) -> StoreFault:
    if status in {401, 403}:
        return StoreFault.denied
    return StoreFault.busy if status >= 500 or status in {408, 429} else StoreFault.other


def _error_code(error: BaseException) -> str:
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _http_status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = next((getattr(error, key) for key in ("status", "status_code", "code") if hasattr(error, key)), None)
    return found if isinstance(found, int) else None
