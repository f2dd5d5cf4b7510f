"""Processes watched by pidfd: no pid is ever mistaken for a later one's, and waiting needs no polling."""

import os
import select
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil


class Watched:
    """Processes alive now; use as a context manager."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._descriptors = {os.pidfd_open(pid): pid for pid in pids}
        self.pids = sorted(self._descriptors.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def living(self, timeout_s: float = 0.0) -> list[int]:
        """Those that have not ended `timeout_s` from now; returns at once when all have."""
        deadline = time.monotonic() + timeout_s
        waiting = dict(self._descriptors)
        while waiting:
            left_s = max(0.0, deadline - time.monotonic())
            ended, _, _ = select.select(list(waiting), [], [], left_s)
            if not ended:
                break
            for descriptor in ended:
                del waiting[descriptor]
        return sorted(waiting.values())


def descendants(pid: int | None = None) -> set[int]:
    """Every live process below `pid`, this process by default; not those that are ended but not reaped."""
    found = set()
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ends while it is looked at
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found


def zygotes_below(pid: int | None = None) -> set[int]:
    found = set()
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):  # so is a zombie's
            if "orchestrator.agent.zygote" in child.cmdline():
                found.add(child.pid)
    return found
