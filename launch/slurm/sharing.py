"""Whether the nodes of a cluster can see a folder of the login node."""

from pathlib import Path

import psutil

from orchestrator.data.files import local_path

_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
_PRIVATE = ("/tmp", "/dev/shm", "/run")
"""Each machine's own by convention."""


def not_shared(key: str, value: str) -> str | None:
    """The sentence for a folder that surely is this machine's own; None for a URL and where nothing can be said."""
    path = local_path(value)
    if path is None:
        return None
    resolved = Path(path).resolve()
    private = next((folder for folder in _PRIVATE if resolved.is_relative_to(folder)), None)
    kind = _file_system(resolved)
    if private is None and kind not in _IN_MEMORY:
        return None
    why = f"below {private}" if private else f"on {kind}"
    way_out = f"use a folder on the shared file system, as in {key}=$HOME/..."
    return f"{key}={value} is {why}, which the nodes can't see; {way_out}"


def _file_system(path: Path) -> str:
    mounts = [mount for mount in psutil.disk_partitions(all=True) if path.is_relative_to(mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""
