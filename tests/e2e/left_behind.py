"""What processes that carry a mark in their environment have left on this machine; others may work beside them."""

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from orchestrator.simulate.campaign import SCRATCH_PREFIX

SHARED_MEMORY = Path("/dev/shm")


def marked_pids(mark: str) -> list[int]:
    """Live processes whose environment holds `mark`: ours, whoever their parent is by now."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if mark.encode() in (folder / "environ").read_bytes() and is_alive(int(folder.name)):
                found.append(int(folder.name))
        except OSError:  # it has ended, or is not ours
            continue
    return found


def is_alive(pid: int) -> bool:
    """Whether a process of that number runs (a zombie does not)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def command_of(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
    return command[:120]


def new_shared_memory(before: Iterable[Path], mark: str) -> set[Path]:
    """Of /dev/shm what was not there before and may be ours: it is no simulation's, which looks after its own, and no
    live process without the mark has it open."""
    found = {path for path in SHARED_MEMORY.iterdir() if not path.name.startswith(SCRATCH_PREFIX)} - {*before}
    return found - _held_by_others(mark) if found else set()


def _held_by_others(mark: str) -> set[Path]:
    ours = {*marked_pids(mark), os.getpid()}
    held: set[Path] = set()
    for process in psutil.process_iter():
        if process.pid not in ours:
            held |= _open_in(process.pid)
    return held


def _open_in(pid: int) -> set[Path]:
    """Entries of /dev/shm that a process has open, or mapped, or has something open in."""
    names: set[str] = set()
    try:
        names |= {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}  # noqa: PTH115 -- may be no path
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        names |= {line.split(maxsplit=5)[5] for line in lines if str(SHARED_MEMORY) in line}
    except OSError:  # it has ended, or is not ours to look at
        pass
    inside = (Path(name) for name in names if name.startswith(f"{SHARED_MEMORY}/"))
    return {SHARED_MEMORY / path.relative_to(SHARED_MEMORY).parts[0] for path in inside}


def listening_ports(pids: Iterable[int]) -> set[int]:
    """TCP ports on which these processes listen."""
    found: set[int] = set()
    for pid in pids:
        try:
            connections = psutil.Process(pid).net_connections("tcp")
        except psutil.Error:
            continue
        found |= {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}
    return found
