"""Whether the kernel killed a rank for want of memory: a SIGKILL says nothing of its sender, but the kernel counts.

Counters, the nearest first: `oom_kill` of the agent's memory cgroup (`memory.events` in version 2, where it covers
the groups below; `memory.oom_control` in version 1), and of the whole machine (/proc/vmstat).
"""

import contextlib
import signal
from pathlib import Path
from typing import Any

_MACHINE = Path("/proc/vmstat")
_MOUNTS = Path("/sys/fs/cgroup")


class OomKills:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._files = [*_group_files(Path("/proc/self/cgroup").read_text()), _MACHINE]
        self._seen = self._read()

    def reason(self, end: dict[str, Any]) -> str:
        """Why a process ended so: empty but for a SIGKILL that was not ours, where a counter has risen."""
        if end["signal"] != signal.SIGKILL or end["is_stopped"]:
            return ""
        before, self._seen = self._seen, self._read()
        risen = [file for file, count in self._seen.items() if count > before.get(file, count)]
        return f"out of memory: the kernel killed it, as {risen[0]} counts" if risen else ""

    def _read(self) -> dict[Path, int]:
        counts = ((file, oom_kills(_text(file))) for file in self._files)
        return {file: count for file, count in counts if count is not None}


def _group_files(memberships: str) -> list[Path]:
    """From /proc/self/cgroup: `4:memory:/a/b` (version 1), `0::/a/b` (version 2)."""
    files = []
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            files.append(_MOUNTS / "memory" / path.lstrip("/") / "memory.oom_control")
        elif not controllers:
            files.append(_MOUNTS / path.lstrip("/") / "memory.events")
    return files


def oom_kills(text: str) -> int | None:
    """The value of the line `oom_kill N`."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.strip().isdecimal():
            return int(value)
    return None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def outlive_ranks() -> None:
    """Ray has the kernel take its workers first (1000): before the ranks that this one starts, and with it the memory
    that they recover from."""
    with contextlib.suppress(OSError):  # a parent that may not have it lower
        Path("/proc/self/oom_score_adj").write_text("0")
