"""Memory, limits, folders, clock and network of this machine."""

import ctypes
import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from orchestrator.doctor.finding import Finding, Level
from orchestrator.observe.units import bytes_text

MIN_OPEN_FILES = 4096
RAY_SOCKET_SUFFIX = "/ray/session_2026-01-01_00-00-00_000000_1000000/sockets/plasma_store"
MAX_SOCKET_PATH = 107
"""Bytes of an AF_UNIX address on Linux."""
MIN_FREE_BYTES = 20 * 2**30
MIN_TEMP_BYTES = 256 * 2**20
"""Ray's logs of one run."""
MIN_SHM_BYTES = 128 * 2**20
"""Ray's smallest object store, and gloo's buffers."""
STA_UNSYNC = 0x0040
"""linux/timex.h: the kernel's clock is not kept by a time service."""


def machine(folders: Sequence[str]) -> Iterator[Finding]:
    yield memory()
    yield shared_memory()
    yield open_files()
    yield temp_folder()
    for folder in folders:
        yield disk(folder)
    yield clock()
    yield address()
    yield ports()


def memory() -> Finding:
    """What may be used here, a container's limit included."""
    available = psutil.virtual_memory().available
    limit = _cgroup_limit()
    found = f"{bytes_text(available)} free"
    if limit is not None and limit < psutil.virtual_memory().total:
        found += f", {bytes_text(limit)} allowed by the container"
        available = min(available, limit)
    if available < 4 * 2**30:
        return Finding("memory", Level.warn, found, "a worker takes 0.5 GiB and more before the model: ask for more")
    return Finding("memory", Level.ok, found)


def shared_memory() -> Finding:
    """Where Ray and gloo put what processes of one node share."""
    free = shutil.disk_usage("/dev/shm").free
    if free < MIN_SHM_BYTES:
        found = f"{bytes_text(free)} free in /dev/shm, {bytes_text(MIN_SHM_BYTES)} are needed"
        return Finding("shared memory", Level.fail, found, "remove what others left there (ls -l /dev/shm)")
    return Finding("shared memory", Level.ok, f"{bytes_text(free)} free in /dev/shm")


def _cgroup_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() else None
    return None


def open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= MIN_OPEN_FILES:
        return Finding("open files", Level.ok, f"up to {soft:,}")
    cure = f"ulimit -n {min(hard, 65536)} in the job's set-up lines; Ray opens thousands"
    return Finding("open files", Level.warn, f"up to {soft:,} only", cure)


def temp_folder() -> Finding:
    folder = tempfile.gettempdir()
    bytes_used = len(os.fsencode(folder + RAY_SOCKET_SUFFIX))
    free = shutil.disk_usage(folder).free
    try:
        with tempfile.TemporaryFile():
            pass
    except OSError as error:
        return Finding(
            "temporary folder", Level.fail, f"{folder}: {error.strerror}", "set TMPDIR to a folder on disk"
        )
    if free < MIN_TEMP_BYTES:
        found = f"{folder} has {bytes_text(free)} free, {bytes_text(MIN_TEMP_BYTES)} are needed"
        return Finding("temporary folder", Level.fail, found, "empty it, or set TMPDIR to another folder on disk")
    if bytes_used > MAX_SOCKET_PATH:
        cure = "set TMPDIR=/tmp: Ray's sockets lie below it, and Linux allows 107 bytes for their path"
        return Finding("temporary folder", Level.warn, f"{folder} is too long for Ray's sockets", cure)
    return Finding("temporary folder", Level.ok, folder)


def disk(folder: str) -> Finding:
    """Room and write access where a run's folder or checkpoints would lie."""
    row = f"disk of {folder}"
    place = Path(folder).absolute()
    while not os.path.exists(place):  # noqa: PTH110  a name that is too long is not there either
        place = place.parent
    if not os.access(place, os.W_OK):
        return Finding(row, Level.fail, f"{place} can't be written", "choose another run.root or checkpoint.url")
    free = shutil.disk_usage(place).free
    if free < MIN_FREE_BYTES:
        cure = "a checkpoint takes 12 bytes per parameter, checkpoint.keep_last of them are kept"
        return Finding(row, Level.warn, f"{bytes_text(free)} free", cure)
    return Finding(row, Level.ok, f"{bytes_text(free)} free")


def clock() -> Finding:
    """Whether a time service keeps this clock: the kernel knows (adjtimex)."""
    status = ctypes.create_string_buffer(512)  # struct timex, zeroed: ask only
    state = ctypes.CDLL(None, use_errno=True).adjtimex(status)
    if state < 0:
        return Finding("clock", Level.ok, "the kernel does not say whether a time service keeps it")
    is_free = int.from_bytes(status.raw[40:44], "little") & STA_UNSYNC
    if is_free:
        cure = "start chronyd or systemd-timesyncd, unless the host keeps a virtual machine's clock"
        return Finding("clock", Level.warn, "no time service keeps it", cure)
    return Finding("clock", Level.ok, "kept by a time service")


def address() -> Finding:
    """gloo and NCCL need an address that the other nodes reach."""
    name = socket.gethostname()
    try:
        found = socket.gethostbyname(name)
    except OSError:
        found = ""
    up = [nic for nic, stats in psutil.net_if_stats().items() if stats.isup and nic != "lo"]
    if not up:
        return Finding("network", Level.ok, "the loopback only: one node can train")
    if not found or found.startswith("127."):
        cure = "give the host's name its address in /etc/hosts, or set cluster.network_interface"
        return Finding("network", Level.warn, f"{name} is {found or 'not known'} here; up: {', '.join(up)}", cure)
    return Finding("network", Level.ok, f"{name} is {found}; interfaces up: {', '.join(up)}")


def ports() -> Finding:
    try:
        with socket.socket() as probe:
            probe.bind(("", 0))
    except OSError as error:
        return Finding("ports", Level.fail, f"none can be had: {error.strerror}", "end what holds them (ss -tlnp)")
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return Finding("ports", Level.ok, f"free ones from {low} to {high}")
