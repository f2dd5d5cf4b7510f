"""What `phalanx cluster down` and `status` have done on a host: `python -m launch.hosts.errand`, by ssh.

Hears one line: `end` or `look`, with the cluster's mark and what was recorded of this host. Answers with one.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from launch.hosts.marks import processes_of
from launch.job.node import MAIN_PROCESSES
from orchestrator.fleet.surroundings import TEMP_PREFIX
from orchestrator.processes import find_process, named

END_TIMEOUT_S = 30.0
"""How long the host's program may take to end what descends from it, before that is done from here."""
POLL_S = 0.05


def end(mark: str, pid: int | None, born_s: float, folder: str) -> dict[str, Any]:
    """End exactly what this cluster has started here: first by its own program, then what is left of it."""
    holder = _holder(pid, born_s)
    if holder is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            holder.terminate()
            with contextlib.suppress(psutil.TimeoutExpired):
                holder.wait(END_TIMEOUT_S)
            holder.kill()
    until_s = time.monotonic() + END_TIMEOUT_S
    while (left := processes_of(mark, folder)) and time.monotonic() < until_s:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(POLL_S)
    if Path(folder).name.startswith(TEMP_PREFIX) and _is_mine(folder):
        shutil.rmtree(folder, ignore_errors=True)
    return {"op": "ended", "left": [process.pid for process in left]}


def look(mark: str, pid: int | None, born_s: float, folder: str) -> dict[str, Any]:
    """Whether the host's program and its Ray live."""
    processes = processes_of(mark, folder)
    is_up = _holder(pid, born_s) is not None and bool(named(processes, MAIN_PROCESSES))
    return {"op": "looked", "is_up": is_up, "processes": len(processes)}


def _holder(pid: int | None, born_s: float) -> psutil.Process | None:
    """This host's program; None also where none was recorded."""
    return None if pid is None else find_process(pid, born_s)


def _is_mine(folder: str) -> bool:
    with contextlib.suppress(OSError):
        return os.lstat(folder).st_uid == os.getuid()
    return False


def main() -> None:
    asked = json.loads(sys.stdin.readline())
    recorded = asked["mark"], asked["pid"], asked["born_s"], asked["folder"]
    answer = end(*recorded) if asked["op"] == "end" else look(*recorded)
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
