"""Rolling back: which point to go back to, which windows to skip, and what is recorded of it. Plan half."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.checkpoint.lineage import Fork, Lineage
from orchestrator.control.anomalies import Anomaly
from orchestrator.data.order import window_of_step


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """One rollback, as a line of branches.jsonl has it; the run's first branch, 0, has none."""

    branch: int
    attempt: int
    """The one in which the anomaly was seen."""
    at_step: int
    """Where training goes on from: the newest step that the branches share."""
    anomaly_step: int
    kind: str
    reason: str
    windows: tuple[int, ...]
    """Skipped from this branch on."""
    skipped_windows: tuple[int, ...]
    """All that this branch skips."""
    time: float = 0.0
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What a rollback may go back to."""

    max_step: int
    is_memory_good: bool
    """False where the agents' snapshots are under suspicion, too."""


def limit_for(anomaly: Anomaly, branches: Sequence[Branch]) -> Limit:
    """How far back is safe.

    The first time the point right before is taken. Where the last rollback did not get past its anomaly, the state
    that it went back to is to blame and not the data: the next one goes back behind it.
    """
    if not is_repeated(anomaly, branches):
        return Limit(anomaly.good_step, is_memory_good=True)
    return Limit(max(0, min(branches[-1].at_step - 1, anomaly.good_step)), is_memory_good=False)


def is_repeated(anomaly: Anomaly, branches: Sequence[Branch]) -> bool:
    """Whether the run has not got past the last anomaly."""
    return bool(branches) and anomaly.step <= branches[-1].anomaly_step


def windows_to_skip(
    anomaly: Anomaly, branches: Sequence[Branch], at_step: int, skipped: Sequence[int]
) -> tuple[int, ...]:
    """The windows that the new branch leaves out, with `skipped` left out already and training going on at `at_step`.

    The first time the bad step's own. Where that did not help, all from `at_step` on, because the same windows would
    lead to the same state (as PaLM's authors did, arXiv 2204.02311, section 5.1).
    """
    if not anomaly.kind.is_of_data:
        return ()
    first = at_step if is_repeated(anomaly, branches) else anomaly.step - 1
    return tuple(window_of_step(step, skipped) for step in range(first, anomaly.step))


def lineage(branches: Sequence[Branch]) -> Lineage:
    return Lineage(tuple(Fork(branch.attempt, branch.at_step) for branch in branches))
