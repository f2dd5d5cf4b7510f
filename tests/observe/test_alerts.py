"""Which events find a person who is not watching, with what words and at which of W&B's levels."""

import io
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.chronicle import Chronicle
from orchestrator.observe.console import Console
from orchestrator.observe.ledger import EventName, read_events
from orchestrator.observe.tracking import NullTracker
from orchestrator.runfolder import RunFolder

DIGEST = "rank 1 on node7 failed first: out of memory\nnext: train.micro_batch_size=2"
WHO = {"rank": 1, "node": "node7"}
RAISED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "rank_died": (WHO | {"signal": 9}, "a rank died", "WARN", "rank 1 on node7 was killed by signal 9 (SIGKILL)"),
    "hang_detected": (WHO | {"message": "no step"}, "ranks hang", "WARN", "rank 1 on node7 hangs: no step"),
    "node_lost": ({"node": "node7"}, "a node was lost", "WARN", "node node7 was lost"),
    "anomaly": ({"message": "the loss is NaN"}, "the numbers are bad", "WARN", "step 7: the loss is NaN"),
    "straggler": (WHO | {"message": "waits"}, "a rank is slow", "WARN", "rank 1 on node7 is slow: it waits"),
    "gpu_fault": (WHO | {"message": "is hot"}, "a GPU is not well", "WARN", "the GPU of rank 1 on node7 is hot"),
    "preemption_notice": ({}, "the run was told to stop", "INFO", "told to stop: saving after this step"),
    "run_failed": ({"rank": 1, "digest": DIGEST}, "the run failed", "ERROR", DIGEST),
}
"""Event -> its fields, and the alert: title, level, how its text begins."""
OTHERS: dict[str, dict[str, Any]] = {
    "run_started": {"world_size": 2},
    "attempt_started": {"resume_step": 5, "steps_lost": 1},
    "first_step": {},
    "recovered": {"downtime_s": 0.5, "steps_lost": 0, "source": "memory"},
    "snapshot": {"tier": "memory", "bytes": 8},
    "checkpoint_started": {},
    "checkpoint_committed": {"path": "step_00000007", "bytes": 8, "seconds": 0.1},
    "checkpoint_failed": {"message": "no space left"},
    "checkpoint_rejected": {"path": "step_00000007", "message": "a byte differs"},
    "rollback": {"to_step": 5, "windows": [6], "branch": 1},
    "resized": {"from": 2, "to": 1, "why": "a node was lost"},
    "requeued": {},
    "run_finished": {},
}
"""What a run gets over by itself, or what is no trouble."""


class Alerts(NullTracker):
    def __init__(self) -> None:
        super().__init__()
        self.alerts: list[tuple[str, str, str]] = []

    def alert(self, title: str, text: str, level: str = "WARN") -> None:
        self.alerts.append((title, level, text))


def alerts_of(folder: Path, event: str, fields: dict[str, Any]) -> list[tuple[str, str, str]]:
    tracker = Alerts()
    chronicle = Chronicle(RunFolder(folder), Console(io.StringIO(), False), tracker, 1, driver_started_s=0.0)
    chronicle.event(event, 2, 7, **fields)
    chronicle.close(0)
    assert [record["event"] for record in read_events(RunFolder(folder).events)] == [event]
    return tracker.alerts


@pytest.mark.parametrize("event", RAISED)
def test_what_a_person_should_hear_of_raises_one_alert(tmp_path: Path, event: str) -> None:
    fields, title, level, text = RAISED[event]
    (alert,) = alerts_of(tmp_path, event, fields)
    assert alert[:2] == (title, level)
    assert alert[2].startswith(text)


@pytest.mark.parametrize("event", OTHERS)
def test_what_a_run_gets_over_by_itself_raises_none(tmp_path: Path, event: str) -> None:
    assert alerts_of(tmp_path, event, OTHERS[event]) == []


def test_every_event_of_the_ledger_is_in_one_of_the_tables() -> None:
    assert sorted([*RAISED, *OTHERS]) == sorted(EventName)


def test_a_warning_of_the_driver_is_an_alert_too(tmp_path: Path) -> None:
    said, tracker = io.StringIO(), Alerts()
    chronicle = Chronicle(RunFolder(tmp_path), Console(said, False), tracker, 1, driver_started_s=0.0)
    chronicle.alert("checkpoints fail", "the store is full since 10 minutes")
    chronicle.close(0)
    assert tracker.alerts == [("checkpoints fail", "WARN", "the store is full since 10 minutes")]
    assert "the store is full since 10 minutes" in said.getvalue()
