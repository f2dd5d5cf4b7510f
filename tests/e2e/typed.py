"""`phalanx` as a person types it: real processes, watched through the files they write, always ended."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from left_behind import command_of, marked_pids

from orchestrator.observe.ledger import read_events
from orchestrator.observe.metrics import StepRow, read_last_rows, surviving_rows
from orchestrator.runfolder import RunFolder

T = TypeVar("T")

PHALANX = str(Path(sys.executable).with_name("phalanx"))
GIVE_UP_S = 240.0
"""A safety net: nothing is asserted about how long things take."""
POLL_S = 0.005
STARTED_PIDS: list[int] = []
"""Of every `phalanx` that was typed."""


def wait_for(what: str, look: Callable[[], T | None], process: subprocess.Popen[bytes] | None = None) -> T:
    """Poll until `look` gives something; fails where `process` ends before."""
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        has_ended = process is not None and process.poll() is not None
        found = look()
        if found:
            return found
        if has_ended:
            raise AssertionError(f"phalanx ended with {process.returncode} before {what}")
        time.sleep(POLL_S)
    raise AssertionError(f"{what} did not come in {GIVE_UP_S:g} s")


@dataclass(frozen=True)
class SharedRay:
    address: str
    environment: dict[str, str]
    """What a process needs to join."""


@dataclass
class Run:
    """A run folder to be: the one folder under `root`."""

    root: Path

    @property
    def folder(self) -> RunFolder:
        (path,) = [path for path in self.root.iterdir() if path.is_dir()]
        return RunFolder(path)

    @property
    def has_folder(self) -> bool:
        return self.root.is_dir() and any(path.is_dir() for path in self.root.iterdir())

    def rows(self) -> dict[int, StepRow]:
        return surviving_rows(self.folder.metrics)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """All events, or those of these names; none where the run has not begun."""
        if not self.has_folder:
            return []
        return [event for event in read_events(self.folder.events) if not names or event["event"] in names]

    def newest_row(self) -> StepRow | None:
        if not self.has_folder or not self.folder.metrics.exists():
            return None
        rows = read_last_rows(self.folder.metrics, 1)
        return rows[0] if rows else None

    def newest_attempt(self) -> int:
        return max((event["attempt"] for event in self.events("attempt_started")), default=0)

    def rank_pid(self, attempt: int, rank: int) -> int | None:
        """From the first line of the rank's log; None until it is there."""
        log = self.folder.rank_log(attempt, rank)
        found = re.search(rf"attempt {attempt}, pid (\d+)\n", log.read_text()) if log.exists() else None
        return int(found[1]) if found else None

    def rank_pids(self) -> list[int]:
        """Of every rank that ever printed."""
        logs = self.folder.path.glob("attempt_*/rank_*.log")
        return [int(pid) for log in logs for pid in re.findall(r"attempt \d+, pid (\d+)\n", log.read_text())]

    def committed_steps(self) -> list[int]:
        return sorted(int(path.parent.name[5:]) for path in self.folder.checkpoints.glob("step_*/COMMITTED.json"))


@dataclass
class Driver:
    """A `phalanx` process in a group of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    """What it printed."""
    errors: Path

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def error_output(self) -> str:
        return self.errors.read_text()

    def wait(self, give_up_s: float = GIVE_UP_S) -> int:
        return self.process.wait(timeout=give_up_s)

    def finish(self, give_up_s: float = GIVE_UP_S) -> None:
        """Wait for an end in order."""
        code = self.wait(give_up_s)
        assert code == 0, f"exit code {code}\n{self.output}\n{self.error_output}"

    def wait_for(self, what: str, look: Callable[[], T | None]) -> T:
        try:
            return wait_for(what, look, self.process)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}\n{self.error_output}") from None

    def wait_for_step(self, run: Run, step: int) -> StepRow:
        """Until the newest attempt has done `step`."""

        def look() -> StepRow | None:
            row = run.newest_row()
            return row if row and row.step >= step and row.attempt == run.newest_attempt() else None

        return self.wait_for(f"step {step}", look)


@dataclass
class Typist:
    """Types commands; `close` ends whatever they started."""

    scratch: Path
    environment: dict[str, str]
    words: Sequence[str] = ()
    """Overrides of every `train`."""
    _drivers: list[Driver] = field(default_factory=list)

    def start(self, *words: str) -> Driver:
        number = len(self._drivers)
        log, errors = self.scratch / f"typed_{number}.out", self.scratch / f"typed_{number}.err"
        with log.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(
                [PHALANX, *words],
                cwd=self.scratch,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        STARTED_PIDS.append(process.pid)
        driver = Driver(process, log, errors)
        self._drivers.append(driver)
        return driver

    def train(self, run: Run, *words: str) -> Driver:
        return self.start("train", *self.words, f"run.root={run.root}", *words)

    def type(self, *words: str) -> Driver:
        """Type and wait, whatever the exit code."""
        driver = self.start(*words)
        driver.wait()
        return driver

    def close(self) -> None:
        for driver in self._drivers:
            if driver.process.poll() is None:
                os.killpg(driver.process.pid, signal.SIGKILL)
                driver.process.wait()


def marked_processes(mark: str) -> list[str]:
    """`pid command` of every live process whose environment holds `mark`: ours, whoever its parent is by now."""
    return [f"{pid} {command_of(pid)}" for pid in marked_pids(mark)]
