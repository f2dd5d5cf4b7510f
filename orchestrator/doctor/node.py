"""What one node says of itself: the rows, and for `phalanx doctor --nodes` each of them as a line of JSON."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.codec import encode
from orchestrator.doctor.finding import Finding, Level
from orchestrator.doctor.machine import machine
from orchestrator.doctor.services import services
from orchestrator.doctor.software import software, torch_and_gpu

MARK = "phalanx-doctor:"
"""Begins a line of ours. srun --label cuts lines at 1,024 bytes: so one for each row, and none of them long."""
MAX_FOUND = 600
NOT_SHARED = "use a folder on a file system that all nodes mount, for run.root, data.path and checkpoint.url"


def look(folders: Sequence[str], ray_address: str | None) -> Iterator[Finding]:
    """Every row of this machine, the quick ones first."""
    yield from software()
    yield from machine(folders)
    yield from services(ray_address)
    yield from torch_and_gpu()


def node_name() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def shared_folder(token: Path) -> Finding:
    """Whether the asker's `token` is seen here; leaves this node's own answer beside it."""
    row = f"shared folder {token.parent}"
    if not token.exists():
        return Finding(row, Level.fail, "is another one here: the asker's file is not in it", NOT_SHARED)
    try:
        token.with_name(f"{token.name}.{node_name()}").touch()
    except OSError as error:
        return Finding(row, Level.fail, f"can't be written here: {error.strerror}", NOT_SHARED)
    return Finding(row, Level.ok, "seen and written")


def main(token: str, folders: Sequence[str]) -> None:
    for finding in (*look(folders, None), shared_folder(Path(token))):
        print(MARK + json.dumps(encode(replace(finding, found=finding.found[:MAX_FOUND]))), flush=True)
    print(MARK + json.dumps({"host": node_name(), "time_s": time.time()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
