"""A lock file that says who holds it: the kernel frees the lock however its process ends."""

import fcntl
import os
import socket
import time
from collections.abc import Callable

PAUSE_S = 0.005


class HeldError(Exception):
    """Another process holds it; the text says which."""


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
