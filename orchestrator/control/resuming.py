"""Where the next attempt starts: the agents' memory, else storage; after an anomaly, on a new branch."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.retry import Patience, retried
from orchestrator.checkpoint.store import Store
from orchestrator.control.attempt import Attempt
from orchestrator.control.chronicle import Chronicle
from orchestrator.control.clock import Clock
from orchestrator.control.disktier import DiskTier
from orchestrator.control.opening import OpenRun
from orchestrator.control.reports import Reports
from orchestrator.control.rollback import Rollbacks, branch_fields
from orchestrator.control.storedpoint import StoredPoint, stored_point
from orchestrator.errors import StoreError
from orchestrator.fleet.fleet import Fleet
from orchestrator.spec import ResumePoint

PAUSE_S = 0.5
"""How often notices are looked for while a store is waited for."""


@dataclass(frozen=True, slots=True)
class Resuming:
    run: OpenRun
    store: Store
    disks: DiskTier | None
    fleet: Fleet
    reports: Reports
    rollbacks: Rollbacks
    chronicle: Chronicle
    clock: Clock
    has_notice: Callable[[], bool]
    """A preemption notice waits to be acted on."""

    def point(self, previous: Attempt | None, *, is_memory_asked: bool) -> ResumePoint:
        """After `previous`, where the next attempt starts; after an anomaly, the start of a new branch.

        Raises CheckpointError; ConnectionError where a node is gone whose memory was asked.
        """
        limit = self.rollbacks.limit
        max_step = None if limit is None else limit.max_step
        resume = None
        if previous is not None and is_memory_asked and (limit is None or limit.is_memory_good):
            resume = self.fleet.memory_point(previous.resume, self.reports.committed_step, max_step)
        if resume is None:
            resume = self._stored(previous, max_step)
        self._branch_off(previous, resume)
        resume = self.rollbacks.on_newest_branch(resume)
        return replace(resume, owes_evaluation=self.reports.owes_evaluation(resume.step))

    def _branch_off(self, previous: Attempt | None, resume: ResumePoint) -> None:
        branch = self.rollbacks.branch_off(resume)
        if branch is None:
            return
        number, last_step = (previous.number, previous.last_step) if previous else (0, None)
        self.chronicle.event("rollback", number, last_step, **branch_fields(branch))
        self.reports.leave_behind(branch.at_step)
        with contextlib.suppress(StoreError):  # what is left behind is never chosen, marked or not
            for step in self.rollbacks.set_aside(self.store):
                reason = f"left behind: the run went back to step {branch.at_step}"
                self._reject(number, step, reason, self.store.where(step_folder(step)))

    def _stored(self, previous: Attempt | None, max_step: int | None) -> ResumePoint:
        """The newest checkpoint that verifies; a store that does not answer is asked again, as for a save."""
        number = previous.number if previous else 0

        def reject(step: int, reason: str, path: str) -> None:
            self._reject(number, step, reason, path)

        def look() -> StoredPoint:
            known = previous and self.reports.committed_step  # this driver's own: only it commits
            how = {"lineage": self.rollbacks.lineage, "max_step": max_step, "known_committed": known}
            return stored_point(self.run, self.store, self.disks, reject, **how)

        point = retried(
            look,
            Patience(self.run.config.checkpoint.retry_timeout_s),
            pause=self._pause,
            on_wait=lambda error: self.chronicle.console.warn(f"the run waits for its checkpoints: {error}"),
            clock=self.clock.monotonic,
        )
        if point.committed_step:
            self.reports.restored(point.committed_step)
        return point.resume

    def _reject(self, attempt: int, step: int, reason: str, path: str) -> None:
        self.chronicle.event("checkpoint_rejected", attempt, step, path=path, message=reason)

    def _pause(self, seconds: float) -> bool:
        """True where a notice has come: then there is no more time to wait."""
        until_s = self.clock.monotonic() + seconds
        while (left_s := until_s - self.clock.monotonic()) > 0 and not self.has_notice():
            self.clock.sleep(min(PAUSE_S, left_s))
        return self.has_notice()
