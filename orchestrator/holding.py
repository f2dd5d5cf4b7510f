"""A lock file that says who holds it: the kernel frees the lock however its process ends."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PAUSE_S = 0.005
WAIT_POLL_S = 0.2


class HeldError(Exception):
    """Another process holds it; the text says which."""


@contextlib.contextmanager
def held(path: Path, wait_s: float = 0.0) -> Iterator[int]:
    """Hold the lock file at `path`, signed. Raises HeldError where another holds it for longer than `wait_s`.

    The descriptor: a process that inherits it holds the lock on after this one.
    """
    until_s = time.monotonic() + wait_s
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait_for(descriptor, until_s)
        sign(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, until_s: float) -> None:
    """`until_s` is monotonic."""
    while True:
        try:
            lock(descriptor)
            return
        except HeldError:
            if time.monotonic() >= until_s:
                raise
        time.sleep(WAIT_POLL_S)


def lock(descriptor: int, pause: Callable[[], object] = lambda: time.sleep(PAUSE_S)) -> None:
    """Without waiting, but for those who only look whether it is held, with a shared lock, for a moment.

    Raises HeldError; OSError where the file system has no locks.
    """
    while not _is_granted(descriptor, fcntl.LOCK_EX):
        if not _is_granted(descriptor, fcntl.LOCK_SH):
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            raise HeldError(holder or "by another process")
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        pause()


def sign(descriptor: int) -> None:
    """Write down that this process holds it."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _is_granted(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
