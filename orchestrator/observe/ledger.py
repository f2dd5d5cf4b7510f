"""events.jsonl: what happened to the run, one object a line (contract, DESIGN section 5)."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.observe.jsonlines import JsonLines, read_records


class EventName(StrEnum):
    run_started = "run_started"
    attempt_started = "attempt_started"
    first_step = "first_step"
    rank_died = "rank_died"
    node_lost = "node_lost"
    hang_detected = "hang_detected"
    straggler = "straggler"
    gpu_fault = "gpu_fault"
    """A GPU counts new uncorrectable errors, or is slowed down by heat or its power supply."""
    anomaly = "anomaly"
    rollback = "rollback"
    snapshot = "snapshot"
    checkpoint_started = "checkpoint_started"
    checkpoint_committed = "checkpoint_committed"
    checkpoint_failed = "checkpoint_failed"
    checkpoint_rejected = "checkpoint_rejected"
    recovered = "recovered"
    resized = "resized"
    preemption_notice = "preemption_notice"
    requeued = "requeued"
    run_finished = "run_finished"
    run_failed = "run_failed"


class Ledger:
    """The run's one writer of events.jsonl. `clock` gives unix seconds."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._lines = JsonLines(path)
        self._clock = clock

    def append(self, event: str, attempt: int, step: int | None, **fields: Any) -> dict[str, Any]:
        """Writes one event and returns it as written.

        Errors: ValueError for a name outside the contract, or a field called `t`.
        """
        if "t" in fields:
            raise ValueError(f"event {event}: the field t is the ledger's own clock; name the other time")
        name = EventName(event)
        record = {"t": self._clock(), "event": str(name), "attempt": attempt, "step": step, **fields}
        self._lines.append(record)
        return record

    def sync(self) -> None:
        """Returns when every event is on disk: call before acting on one that must not be forgotten."""
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """Every whole event, oldest first; a line torn by a dead writer is left out. No file: no events."""
    return [record for record in read_records(path) if "event" in record]
