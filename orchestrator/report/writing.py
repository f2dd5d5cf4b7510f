"""Reads a run's folder and writes report.html and report.md into it."""

import json
import time
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from orchestrator.codec import decode
from orchestrator.data.files import write_atomically
from orchestrator.data.manifest import Manifest
from orchestrator.data.shards import read_manifest
from orchestrator.errors import PhalanxError
from orchestrator.observe.goodput import goodput_ledger
from orchestrator.observe.ledger import read_events
from orchestrator.observe.metrics import stream_rows
from orchestrator.observe.state import is_held, state_of
from orchestrator.report.history import History
from orchestrator.report.markdown import markdown
from orchestrator.report.page import page
from orchestrator.report.record import RunRecord, flattened
from orchestrator.runfolder import RunFolder
from orchestrator.spec import RunPlan


def write_report(folder: RunFolder, *, is_at_end: bool = False) -> Path:
    """Write both files anew; returns the page's path.

    `is_at_end`: the driver itself calls, which holds the run's lock but does nothing more. What the folder lacks is
    left out of the report. Errors: OSError where the files can't be written.
    """
    record = read_record(folder, time.time(), is_at_end=is_at_end)
    write_atomically(str(folder.report_md), markdown(record).encode())
    write_atomically(str(folder.report), page(record).encode())
    return folder.report


def read_record(folder: RunFolder, now_s: float, *, is_at_end: bool = False) -> RunRecord:
    """All that a report tells, from the folder alone (and the data's manifest, where it can be reached)."""
    events, history = read_events(folder.events), History()
    is_driver_alive = not is_at_end and is_held(folder.lock)
    # A million rows pass one by one: as objects they would take gigabytes.
    ledger = goodput_ledger(events, history.taking(stream_rows(folder.metrics)))
    config = flattened(_yaml(folder.config))
    recipe = _yaml(folder.recipe)
    return RunRecord(
        run_id=folder.run_id,
        path=str(folder.path),
        state=str(state_of(events, is_driver_alive)),
        made_s=now_s,
        events=events,
        history=history,
        goodput=ledger.closed(now_s if is_driver_alive else None),
        plan=_plan(folder),
        config=config,
        recipe=flattened(recipe) if recipe else None,
        overrides=[str(word) for word in _yaml(folder.overrides) or []],
        verb="submit" if folder.jobs.exists() else "train",
        environment=_json(folder.env) or {},
        manifest=_manifest(config.get("data.path")),
    )


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _plan(folder: RunFolder) -> RunPlan | None:
    try:
        return decode(RunPlan, _json(folder.plan))
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def _manifest(path: Any) -> Manifest | None:
    try:
        return read_manifest(str(path)) if path else None
    except (PhalanxError, OSError):
        return None
