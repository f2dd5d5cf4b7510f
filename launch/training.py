"""A `phalanx train` in a process of its own, watched through the files it writes."""

import re
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from orchestrator.observe.ledger import read_events
from orchestrator.observe.metrics import read_last_rows
from orchestrator.runfolder import RunFolder

T = TypeVar("T")

POLL_S = 0.01
_PID = re.compile(r"on (?P<host>\S+): attempt (?P<attempt>\d+), pid (?P<pid>\d+)\n")


@dataclass(frozen=True, slots=True)
class Training:
    process: subprocess.Popen[bytes]
    folder: RunFolder

    def wait_for(self, look: Callable[[], T | None]) -> T | None:
        """Poll until `look` gives something true; None where the process ended before."""
        while True:
            has_ended = self.process.poll() is not None
            found = look()
            if found or has_ended:
                return found or None
            time.sleep(POLL_S)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.folder.events) if event["event"] == name]

    def newest_attempt(self) -> int:
        return max((event["attempt"] for event in self.events("attempt_started")), default=0)

    def has_done(self, step: int, attempt: int) -> bool:
        """Whether `attempt` has done `step`."""
        rows = read_last_rows(self.folder.metrics, 1)
        return bool(rows) and rows[0].attempt >= attempt and rows[0].step >= step


def rank_pid(log: Path, *, descends_from: int) -> int | None:
    """The process that wrote a rank's log; None unless it lives on this host, under the process named."""
    found = _PID.search(log.read_text(errors="replace")) if log.is_file() else None
    if found is None or found["host"] != socket.gethostname():
        return None
    pid = int(found["pid"])
    try:
        ancestors = {process.pid for process in psutil.Process(pid).parents()}
    except psutil.NoSuchProcess:
        return None
    return pid if descends_from in ancestors else None
