"""The processes of a virtual node, seen from the machine: its first one, its end, its freezing."""

import contextlib
import os
import select
import signal
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")
_END_TIMEOUT_S = 60.0
"""SIGKILL takes a process at once unless it waits for a disk."""


def first_process(pids: Iterable[int]) -> int | None:
    """The one of a node's processes that is number 1 in the node's own namespace; None where the node is off."""
    depth = len(_numbers(os.getpid()))
    for pid in pids:
        numbers = _numbers(pid)
        if len(numbers) == depth + 1 and numbers[-1] == "1":
            return pid
    return None


def kill(pids: Iterable[int]) -> list[int]:
    """SIGKILL, then wait until each has ended; returns those that have not after a minute."""
    descriptors: dict[int, int] = {}
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                descriptors[pid] = os.pidfd_open(pid)
                signal.pidfd_send_signal(descriptors[pid], signal.SIGKILL)
        return [pid for pid, descriptor in descriptors.items() if not _has_ended(descriptor)]
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def stop(first: int) -> None:
    """SIGSTOP to all of a node, its first process last of all: the node hangs while its kernel still answers."""
    stopped: set[int] = set()
    while news := set(same_namespace(first)) - stopped:  # what was forked meanwhile
        _signal_each(sorted(news, reverse=True), signal.SIGSTOP)
        stopped |= news


def resume(first: int) -> None:
    """SIGCONT to all of a node."""
    _signal_each(same_namespace(first), signal.SIGCONT)


def is_stopped(pid: int) -> bool:
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "T"


def same_namespace(first: int) -> list[int]:
    """Every process in the PID namespace of `first`, itself among them."""
    wanted = (PROC / str(first) / "ns/pid").readlink()
    found = []
    for folder in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if (folder / "ns/pid").readlink() == wanted:
                found.append(int(folder.name))
    return found


def _numbers(pid: int) -> list[str]:
    """A process's number in each nested PID namespace, the outermost that we see first."""
    try:
        status = (PROC / str(pid) / "status").read_text()
    except OSError:
        return []
    return next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])


def _has_ended(descriptor: int) -> bool:
    ready, _, _ = select.select([descriptor], [], [], _END_TIMEOUT_S)
    return bool(ready)


def _signal_each(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
