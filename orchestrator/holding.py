"""A lock file that says who holds it: the kernel frees the lock however its process ends."""

import fcntl
import os
import socket


class HeldError(Exception):
    """Another process holds it; the text says which."""


def lock(descriptor: int) -> None:
    """Without waiting. Raises HeldError; OSError where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        raise HeldError(holder or "by another process") from None


def sign(descriptor: int) -> None:
    """Write down that this process holds it."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
