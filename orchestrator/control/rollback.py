"""Rollbacks of one run: what was recorded of them, and the one that is under way. The driver's side."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.commit import set_aside_left_behind
from orchestrator.checkpoint.lineage import Lineage
from orchestrator.checkpoint.store import Store
from orchestrator.codec import decode, encode
from orchestrator.config import FaultConfig
from orchestrator.control.anomalies import Anomaly, Kind
from orchestrator.control.attempt import Attempt, Message
from orchestrator.control.branches import Branch, Limit, limit_for, lineage, windows_to_skip
from orchestrator.control.clock import Clock
from orchestrator.errors import ConfigError
from orchestrator.observe.jsonlines import JsonLines, read_records
from orchestrator.observe.ledger import read_events
from orchestrator.runfolder import RunFolder
from orchestrator.spec import ResumePoint


@dataclass(frozen=True, slots=True)
class _Pending:
    anomaly: Anomaly
    attempt: int
    skipped_windows: tuple[int, ...]
    """Of the attempt in which it was seen."""


class Rollbacks:
    """Reads branches.jsonl once and is its only writer."""

    def __init__(self, folder: RunFolder, clock: Clock) -> None:
        """Raises ConfigError where what is recorded can't be read: going on would take up what was left behind."""
        self._path = folder.branches
        self._clock = clock
        self._branches = read_branches(folder.branches)
        self._pending = _left_to_do(read_events(folder.events), self._branches)

    @property
    def lineage(self) -> Lineage:
        return lineage(self._branches)

    @property
    def anomaly_step(self) -> int:
        """Where the last anomaly was; 0 where there was none."""
        return self._branches[-1].anomaly_step if self._branches else 0

    @property
    def limit(self) -> Limit | None:
        """What the next attempt may go back to; None where no rollback is under way."""
        return None if self._pending is None else limit_for(self._pending.anomaly, self._branches)

    def hear(self, attempt: Attempt, message: Message) -> Anomaly:
        """One rank's word of an anomaly. Whatever ends the attempt before all have said so, the next one starts from
        a point before it."""
        attempt.left.add(message["rank"])
        anomaly = decode(Anomaly, message["anomaly"])
        self.begin(anomaly, attempt.number, attempt.resume.skipped_windows)
        return anomaly

    def begin(self, anomaly: Anomaly, attempt: int, skipped_windows: tuple[int, ...]) -> None:
        """Until `branch_off`: the next attempt starts before the anomaly. Nothing, where that is recorded already."""
        if all(branch.attempt != attempt for branch in self._branches):
            self._pending = _Pending(anomaly, attempt, skipped_windows)

    def branch_off(self, resume: ResumePoint) -> Branch | None:
        """Record, on disk when this returns, that training goes on from `resume` on a new branch.

        None where no rollback is under way.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        anomaly = pending.anomaly
        windows = windows_to_skip(anomaly, self._branches, resume.step, pending.skipped_windows)
        branch = Branch(
            branch=max(resume.branch, len(self._branches)) + 1,
            attempt=pending.attempt,
            at_step=resume.step,
            anomaly_step=anomaly.step,
            kind=anomaly.kind.value,
            reason=anomaly.message,
            windows=windows,
            skipped_windows=tuple(sorted({*pending.skipped_windows, *windows})),
            time=self._clock.time(),
        )
        self._record(branch)
        self._branches.append(branch)
        return branch

    def _record(self, branch: Branch) -> None:
        lines = JsonLines(self._path)
        try:
            lines.append(encode(branch))
            lines.sync()
        finally:
            lines.close()
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def on_newest_branch(self, resume: ResumePoint) -> ResumePoint:
        """`resume` with what the newest branch skips: a checkpoint may be older than the branch."""
        if not self._branches:
            return resume
        newest = self._branches[-1]
        skipped = tuple(sorted({*newest.skipped_windows, *resume.skipped_windows}))
        return replace(resume, skipped_windows=skipped, branch=max(newest.branch, resume.branch))

    def set_aside(self, store: Store) -> list[int]:
        """Mark in the store what was left behind; the steps. Raises StoreError where it does not answer: what is
        left behind is never chosen all the same."""
        return set_aside_left_behind(store, self.lineage) if self._branches else []


def _left_to_do(events: Sequence[Mapping[str, Any]], branches: Sequence[Branch]) -> _Pending | None:
    """The rollback for which an earlier driver has told the reason, and ended before it was recorded."""
    newest = next((e for e in reversed(events) if e["event"] in ("anomaly", "attempt_started")), None)
    if newest is None or newest["event"] != "anomaly":
        return None
    if any(branch.attempt == newest["attempt"] for branch in branches):
        return None
    step = newest["step"]
    good_step = newest.get("good_step", step - 1)
    anomaly = Anomaly(Kind(newest["kind"]), step, good_step, newest["message"], tuple(newest["ranks"]))
    return _Pending(anomaly, newest["attempt"], branches[-1].skipped_windows if branches else ())


def read_branches(path: Path) -> list[Branch]:
    """Every rollback recorded, oldest first. Raises ConfigError."""
    try:
        return [decode(Branch, record) for record in read_records(path)]
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{path} can't be read ({error!r}): it says which checkpoints a rollback has left behind; restore it, or "
            "start another run with run.id=..."
        ) from error


def lineage_in(path: Path) -> Lineage:
    """What the run has left behind that keeps its branches in `path`. Raises ConfigError."""
    return lineage(read_branches(path))


def anomaly_fields(anomaly: Anomaly, hosts: Sequence[str]) -> dict[str, Any]:
    """What the `anomaly` event says beside the step; `hosts` are those of `anomaly.ranks`."""
    named = f" (on {', '.join(dict.fromkeys(hosts))})" if hosts else ""
    message = f"{anomaly.message}{named}"
    facts = {"kind": anomaly.kind.value, "good_step": anomaly.good_step, "message": message}
    return {**facts, "ranks": list(anomaly.ranks), "nodes": list(hosts)}


def anomaly_digest(anomaly: Anomaly, fault: FaultConfig) -> str:
    """What to say where the run may not go back once more."""
    cures = ["the windows that were skipped are in branches.jsonl in the run folder"]
    if anomaly.kind.is_of_data:
        cures = [
            "lower optim.lr, raise optim.warmup_steps or set optim.grad_clip: numbers that run away again and again, "
            "whatever is skipped, are seldom the data's fault",
            *cures,
        ]
    else:
        cures = ["test the memory and the accelerators of the nodes: the same work gave different bits", *cures]
    lines = [
        f"step {anomaly.step}: {anomaly.message}; cause: bad numbers",
        f"done: went back as often as fault.max_rollbacks={fault.max_rollbacks} allows without getting past it",
        *(f"next: {cure}" for cure in cures),
    ]
    return "\n".join(lines)


def branch_fields(branch: Branch) -> dict[str, Any]:
    """What the `rollback` event says."""
    return {
        "branch": branch.branch,
        "to_step": branch.at_step,
        "window": branch.windows[-1] if branch.windows else None,
        "windows": list(branch.windows),
        "kind": branch.kind,
        "reason": branch.reason,
    }
