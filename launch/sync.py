"""`phalanx sync`: sends W&B what it lacks of a run."""

import os
import sys
from dataclasses import replace
from pathlib import Path

from launch.cli_help import parser
from launch.compose import from_yaml
from launch.runs import find_run
from orchestrator.codec import encode
from orchestrator.config import RunConfig
from orchestrator.control.opening import locked
from orchestrator.data.shards import read_manifest
from orchestrator.errors import EXIT_FAILED, EXIT_PREEMPTED, ConfigError, DataError
from orchestrator.observe.artifacts import Artifact, committed_artifact, data_artifact, wandb_safe
from orchestrator.observe.goodput import goodput_ledger
from orchestrator.observe.ledger import EventName, read_events
from orchestrator.observe.metrics import stream_rows
from orchestrator.observe.state import RunState, is_held, state_of
from orchestrator.observe.tracking import start_tracking
from orchestrator.observe.wandb_values import summary_values, wandb_id
from orchestrator.runfolder import RunFolder

EXAMPLES = """  phalanx sync first                  after an end without W&B: sends the steps that it lacks, in order
  WANDB_BASE_URL=https://wandb.example.org phalanx sync runs/first

The steps are those of metrics.jsonl that count, so nothing is sent twice and branches that a rollback left are taken
back. The data that the run used and its newest checkpoint are recorded as artifacts. A run that goes on sends by
itself what W&B lacks when it is next started.
Exit code 1: W&B could not be reached or did not take everything; the command can be repeated."""
EXIT_CODES = {RunState.finished: 0, RunState.preempted: EXIT_PREEMPTED}


def run(argv: list[str]) -> int:
    """Send and wait for it. Raises ConfigError where the run is unknown or goes on."""
    reader = parser("sync", "Send W&B what it lacks of a run.", EXAMPLES, "[--root DIR] [--timeout-s S] RUN")
    reader.add_argument("run", metavar="RUN", help="a run's id or folder")
    reader.add_argument("--root", type=Path, default=Path("runs"), help="where the runs are (default: runs)")
    reader.add_argument("--timeout-s", type=float, default=3600.0, help="how long W&B may take (default: 3600)")
    options = reader.parse_args(argv)
    folder = find_run(options.run, options.root)
    if is_held(folder.lock):
        raise ConfigError(
            f"run {folder.run_id} is running and sends its steps itself; see: phalanx status {folder.quoted}"
        )
    with locked(folder):  # a second one, or a driver, would send the same steps beside us
        return _send(folder, options.timeout_s)


def _send(folder: RunFolder, timeout_s: float) -> int:
    config = from_yaml(folder.config.read_text())
    events = read_events(folder.events)
    committed = [event for event in events if event["event"] == EventName.checkpoint_committed]
    tracker = start_tracking(
        replace(config.tracking.wandb, close_timeout_s=timeout_s),
        run_id=folder.run_id,
        run_folder=folder,
        run_config=encode(config),
        resumed=True,
        used=_data_used(config),
        made=[committed_artifact(wandb_id(folder.run_id, os.environ), event) for event in committed[-1:]],
        must_be_online=True,
    )
    where = tracker.wait_until_known(timeout_s)
    if where is not None:
        print(f"sending to {where}", flush=True)
        tracker.summarise(summary_values(goodput_ledger(events, stream_rows(folder.metrics)).closed()))
    tracker.close(EXIT_CODES.get(state_of(events, is_driver_alive=False), EXIT_FAILED))
    problems = tracker.take_notices()
    print("\n".join(problems) or f"W&B has every step of run {folder.run_id}", file=sys.stderr if problems else None)
    if problems:
        return EXIT_FAILED
    _mark_synced(folder)
    return 0


def _data_used(config: RunConfig) -> list[Artifact]:
    """Empty where the prepared data is not to be seen from here."""
    try:
        return [data_artifact(str(config.data.path), read_manifest(str(config.data.path)))]
    except DataError:
        return []


def _mark_synced(folder: RunFolder) -> None:
    """`wandb sync` would send an offline segment's steps a second time: it leaves out those with this mark."""
    name = f"run-{wandb_safe(folder.run_id)}.wandb"
    for segment in folder.wandb.glob(f"*run-*/{name}"):
        segment.with_name(f"{name}.synced").touch()
