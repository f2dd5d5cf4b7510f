"""How a run is, read from the files of its folder: nothing is started, asked or written."""

import fcntl
import json
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.observe.goodput import LOST_ATTEMPT
from orchestrator.observe.ledger import EventName, read_events
from orchestrator.observe.metrics import StepRow, read_last_rows
from orchestrator.observe.wording import eta_s
from orchestrator.runfolder import RunFolder

_RECENT_STEPS = 50


class RunState(StrEnum):
    running = "running"
    finished = "finished"
    failed = "failed"
    preempted = "preempted"
    """Stopped early on a notice; the same command goes on with it."""
    interrupted = "interrupted"
    """No driver holds it and it has no end: the driver was killed, or its machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    run_id: str
    path: str
    state: RunState
    step: int
    """Optimizer steps done by the newest attempt that did any."""
    steps: int | None
    """None where the plan was not written."""
    loss: float | None
    tokens_per_s: float | None
    workers: int | None
    """Of the newest attempt."""
    attempts: int
    restarts: int
    """Attempts in place of one that failed; not those that a next driver began, nor a planned change of workers."""
    downtime_s: float
    """What the recoveries cost together."""
    eta_s: float | None
    """None unless it is running."""
    started_s: float | None
    """Unix seconds."""
    last_event_s: float | None
    checkpoint: str | None
    """The newest committed checkpoint's path, as the ledger has it."""


def run_state(folder: RunFolder) -> RunStatus:
    """The run's state now; a folder that holds nothing yet is an interrupted run at step 0."""
    events = read_events(folder.events)
    rows = read_last_rows(folder.metrics, _RECENT_STEPS)
    steps = _planned_steps(folder.plan)
    state = state_of(events, is_held(folder.lock))
    row = rows[-1] if rows else None
    started = _named(events, EventName.attempt_started)
    attempts = max((event["attempt"] for event in started), default=0)
    committed = _named(events, EventName.checkpoint_committed)
    return RunStatus(
        run_id=folder.run_id,
        path=str(folder.path),
        state=state,
        step=row.step if row else 0,
        steps=steps,
        loss=row.loss if row else None,
        tokens_per_s=row.tokens_per_s if row else None,
        workers=started[-1].get("world_size") if started else None,
        attempts=attempts,
        restarts=_restarts(events),
        downtime_s=sum(event.get("downtime_s") or 0.0 for event in _named(events, EventName.recovered)),
        eta_s=_time_left_s(rows, steps) if state is RunState.running else None,
        started_s=events[0]["t"] if events else None,
        last_event_s=events[-1]["t"] if events else None,
        checkpoint=committed[-1].get("path") if committed else None,
    )


def state_of(events: list[dict[str, Any]], is_driver_alive: bool) -> RunState:
    """The newest start or end decides; without an end, whether a driver lives. Pure."""
    is_leaving = False
    for event in reversed(events):
        match event["event"]:
            case EventName.run_finished:
                return RunState.finished
            case EventName.run_failed:
                return RunState.failed
            case EventName.preemption_notice | EventName.requeued:
                is_leaving = True
            case EventName.run_started | EventName.attempt_started:
                break
    if is_driver_alive:
        return RunState.running
    return RunState.preempted if is_leaving else RunState.interrupted


def is_held(lock: Path) -> bool:
    """Whether a live driver holds the lock. Tried and released at once."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks can't say; the run's age has to
        return False
    finally:
        os.close(fd)
    return False


def run_folders(root: Path) -> list[RunFolder]:
    """The runs under `root`, newest first: every folder in it that has a plan, a ledger or a job's script."""
    if not root.is_dir():
        return []
    folders = [RunFolder(path) for path in root.iterdir() if path.is_dir() and not _is_sweep(path)]
    runs = [folder for folder in folders if any(path.exists() for path in _firsts(folder))]
    return sorted(runs, key=lambda folder: (_first_written_s(folder), folder.run_id), reverse=True)


def _is_sweep(path: Path) -> bool:
    """A sweep's folder has jobs and their requeues, too, where it is one job."""
    return (path / "sweep.json").exists()


def _first_written_s(folder: RunFolder) -> float:
    events = read_events(folder.events)
    if events:
        return float(events[0]["t"])
    return next(path for path in _firsts(folder) if path.exists()).stat().st_mtime


def _firsts(folder: RunFolder) -> tuple[Path, ...]:
    """One of these is there from a run's start on."""
    return folder.plan, folder.job_script, folder.jobs, folder.events


def _named(events: list[dict[str, Any]], name: EventName) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name]


def _restarts(events: list[dict[str, Any]]) -> int:
    count, has_failed = 0, False
    for event in events:
        if "driver_started_s" in event:  # a driver's first attempt replaces none of its own
            has_failed = False
        match event["event"]:
            case EventName.attempt_started:
                count += has_failed
                has_failed = False
            case name if name in LOST_ATTEMPT:
                has_failed = True
    return count


def _planned_steps(plan: Path) -> int | None:
    try:
        return int(json.loads(plan.read_text())["steps"])
    except (OSError, ValueError, KeyError):
        return None


def _time_left_s(rows: list[StepRow], steps: int | None) -> float | None:
    if steps is None or not rows:
        return None
    return eta_s([row.step_s for row in rows if row.attempt == rows[-1].attempt], steps - rows[-1].step)
