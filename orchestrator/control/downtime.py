"""What keeps the run from training, and what that has cost."""

import time
from dataclasses import dataclass

from orchestrator.control.attempt import Attempt
from orchestrator.control.chronicle import Chronicle
from orchestrator.control.clock import Clock
from orchestrator.observe.metrics import read_last_rows
from orchestrator.runfolder import RunFolder
from orchestrator.spec import ResumePoint

ORDERLY_ENDS = frozenset({"run_finished", "run_failed", "preemption_notice"})


@dataclass(frozen=True, slots=True)
class Interruption:
    """Time since a failure was seen, until the run trains again."""

    since_s: float
    """Monotonic."""
    at_step: int

    def steps_lost(self, resume: ResumePoint) -> int:
        """Steps that are done again by an attempt that starts there."""
        return max(0, self.at_step - resume.step)


def interruption(folder: RunFolder, events: list[dict[str, object]]) -> Interruption | None:
    """What the death of an earlier driver cost so far; None where the run had not begun, or had ended in order."""
    last_attempt: list[dict[str, object]] = []
    for event in events:
        if event["event"] == "attempt_started":
            last_attempt = []
        last_attempt.append(event)
    has_begun = any(event["event"] == "attempt_started" for event in last_attempt)
    if not has_begun or any(event["event"] in ORDERLY_ENDS for event in last_attempt):
        return None
    rows = read_last_rows(folder.metrics, 1)
    seen_s = max(float(str(event["t"])) for event in last_attempt)
    if folder.metrics.exists():
        seen_s = max(seen_s, folder.metrics.stat().st_mtime)
    return Interruption(
        since_s=time.monotonic() - max(0.0, time.time() - seen_s), at_step=rows[0].step if rows else 0
    )


class Downtime:
    """Failures on the way to the same recovery are one interruption."""

    def __init__(self, chronicle: Chronicle, clock: Clock, interruption: Interruption | None) -> None:
        self.total_s = 0.0
        self.interruption = interruption
        """The one under way."""
        self._chronicle = chronicle
        self._clock = clock

    def steps_lost(self, resume: ResumePoint) -> int:
        return self.interruption.steps_lost(resume) if self.interruption else 0

    def begin(self, step: int) -> None:
        """The run stands at `step`."""
        if self.interruption is None:
            self.interruption = Interruption(self._clock.monotonic(), step)

    def trained_until(self, step: int, time_s: float) -> None:
        """Ranks went on without a driver, until unix `time_s`."""
        self.interruption = Interruption(self._clock.monotonic() + time_s - self._clock.time(), step)

    def end(self, attempt: Attempt, step: int | None) -> None:
        """`attempt` has made it good: `step` is its first, or the run's last where none was left."""
        interruption, self.interruption = self.interruption, None
        if interruption is None:
            return
        resume, downtime_s = attempt.resume, self._clock.monotonic() - interruption.since_s
        self.total_s += downtime_s
        facts = {"steps_lost": interruption.steps_lost(resume), "source": resume.source, "resume_step": resume.step}
        self._chronicle.event("recovered", attempt.number, step, downtime_s=downtime_s, **facts)
