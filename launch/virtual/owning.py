"""Whose a virtual cluster is. It is of no use once that process is gone, however that ended."""

from pathlib import Path

import psutil

from launch.virtual.spec import Owner
from orchestrator.errors import ConfigError
from orchestrator.processes import birth_s, find_process


def owner_of(pid: int) -> Owner:
    """Raises ConfigError where there is no such process."""
    try:
        return Owner(pid=pid, born_s=birth_s(pid), pid_namespace=_pid_namespace())
    except psutil.NoSuchProcess as error:
        raise ConfigError(f"--owner {pid} is no process; name one that lives, or leave it out") from error


def is_gone(owner: Owner) -> bool:
    """False also where its number says nothing here, as it was given in another container."""
    return owner.pid_namespace == _pid_namespace() and find_process(owner.pid, owner.born_s) is None


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())
