"""A process named for good: by its number and by when it was born, as numbers are given away again."""

import contextlib
from collections.abc import Container, Iterable

import psutil  # type: ignore[import-untyped]

CLOCK_TOLERANCE_S = 2.0
"""The kernel counts from boot; where the clock is set, the time of birth seems to move a little."""


def birth_s(pid: int) -> float:
    """Seconds since the epoch. Raises psutil.NoSuchProcess where there is none."""
    return float(psutil.Process(pid).create_time())


def find_process(pid: int, born_s: float) -> psutil.Process | None:
    """The process that was recorded; None where it has ended, whoever has its number now."""
    try:
        process = psutil.Process(pid)
        is_it = abs(process.create_time() - born_s) <= CLOCK_TOLERANCE_S
        return process if is_it and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def named(processes: Iterable[psutil.Process], names: Container[str]) -> list[tuple[psutil.Process, str]]:
    """Those called one of `names`, each with its name; one that ends while it is looked at has none."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if (name := process.name()) in names:
                found.append((process, name))
    return found
