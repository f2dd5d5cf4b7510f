"""A process named for good: by its number and by when it was born, as numbers are given away again."""

import contextlib
import os
from collections.abc import Container, Iterable
from pathlib import Path

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


def has_open(pid: int, path: Path) -> bool:
    """Whether the process `pid` has the file open; True also where only its owner may know, or no /proc tells."""
    try:
        opened = list(Path(f"/proc/{pid}/fd").iterdir())
    except PermissionError:
        return True
    except OSError:
        return not Path("/proc/self").exists()
    wanted = path.stat()
    for file in opened:
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.path.samestat(file.stat(), wanted):
                return True
    return False


def named(processes: Iterable[psutil.Process], names: Container[str]) -> list[tuple[psutil.Process, str]]:
    """Those called one of `names`, each with its name; one that ends while it is looked at has none."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if (name := process.name()) in names:
                found.append((process, name))
    return found
