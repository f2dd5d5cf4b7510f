"""One trial's `phalanx train`: started, or found alive after the sweep's driver was replaced."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.processes import birth_s, find_process


class TrialProcess:
    """A live trial. Ours to wait for where this driver started it, else watched by its process id."""

    def __init__(self, pid: int, born_s: float, process: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.born_s = born_s
        """When it was started, by the kernel: with the pid it names one process for good."""
        self._process = process

    @classmethod
    def start(
        cls, command: Sequence[str], environment: Mapping[str, str], log: Path, *, is_leashed: bool
    ) -> "TrialProcess":
        """Start `command`; `is_leashed`: it is killed when this process ends, however that ends."""
        log.parent.mkdir(parents=True, exist_ok=True)
        leash = [sys.executable, "-m", "orchestrator.sweep.leash", str(os.getpid())] if is_leashed else []
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*leash, *command],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the sweep's to hand on
            )
        return cls(process.pid, birth_s(process.pid), process)

    @classmethod
    def find(cls, pid: int, born_s: float) -> "TrialProcess | None":
        """A trial that an earlier driver started on this host; None where it has ended."""
        found = cls(pid, born_s)
        return None if found.has_ended() else found

    def has_ended(self) -> bool:
        if self._process is not None:
            return self._process.poll() is not None
        return find_process(self.pid, self.born_s) is None

    def ask_to_stop(self) -> None:
        """It saves at the next step boundary and leaves with exit code 75."""
        self._signal(signal.SIGUSR1)  # in a SLURM step SIGTERM may be blocked: launch/job/driver.py

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if not self.has_ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
