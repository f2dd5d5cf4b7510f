"""The cgroups (version 1) that SLURM makes for its nodes: /sys/fs/cgroup/CONTROLLER/slurm_NODE."""

import contextlib
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_NEEDED = ("freezer", "memory", "cpuset", "cpuacct", "devices")


def are_usable() -> bool:
    """Whether SLURM's plugin for version 1 works: it wants the roots of the hierarchies, writable."""
    return all(os.access(ROOT / controller / "release_agent", os.W_OK) for controller in _NEEDED)


def remove(node_pattern: str) -> list[Path]:
    """Remove what is left of nodes whose processes have ended; returns what could not be removed."""
    left = []
    for top in ROOT.glob(f"*/slurm_{node_pattern}"):
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        left += [top] if top.exists() else []
    return left
