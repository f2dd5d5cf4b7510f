"""Where an export comes from: prepared data -> checkpoint -> export, in its `lineage.json` and in W&B."""

import json
import shlex
import sys
import time
from pathlib import Path

from launch.artifact import Artifact
from launch.compose import from_yaml
from orchestrator.data.files import write_atomically
from orchestrator.errors import ConfigError
from orchestrator.observe.artifacts import checkpoint_artifact, data_artifact, export_artifact, wandb_safe
from orchestrator.observe.tracking import start_tracking
from orchestrator.runfolder import RunFolder

FILE_NAME = "lineage.json"


def record_lineage(artifact: Artifact, folder: Path) -> None:
    """Write `lineage.json` into the exported folder and, where the run is tracked by W&B, a W&B run that used the
    checkpoint and made the export. Errors: OSError where the file can't be written; W&B's are lines on stderr."""
    marker = artifact.reader.marker
    wandb_run_id = marker.wandb_run_id or wandb_safe(marker.run_id)
    where = artifact.reader.where
    checkpoint = checkpoint_artifact(wandb_run_id, where, artifact.step, marker.total_bytes)
    data = data_artifact(str(artifact.data_path), artifact.manifest)
    made = export_artifact(wandb_run_id, str(folder), artifact.step, sources=[data, checkpoint])
    facts = {
        "export": {"uri": made["uri"], "time": time.time()},
        "checkpoint": {
            "uri": checkpoint["uri"],
            "step": artifact.step,
            "run": marker.run_id,
            "fingerprint": marker.fingerprint,
            "tokenizer_xxh3_128": marker.tokenizer_xxh3_128,
            "wandb_artifact": checkpoint["name"],
        },
        "data": {"uri": data["uri"], "wandb_artifact": data["name"], **data["metadata"]},
        "versions": marker.versions,
    }
    write_atomically(str(folder / FILE_NAME), (json.dumps(facts, indent=2) + "\n").encode())
    if artifact.run_folder is not None:
        _tell_wandb(artifact.run_folder, f"{wandb_run_id}-export-{artifact.step}", checkpoint, made)


def _tell_wandb(run: RunFolder, run_id: str, checkpoint: dict, made: dict) -> None:
    """A W&B run of its own beside the training run, so that neither's history is touched; the same export again goes
    on with the same one."""
    try:
        config = from_yaml(run.config.read_text(encoding="utf-8"))
    except (OSError, ConfigError):
        return
    exports = RunFolder(run.path / "exports")
    tracker = start_tracking(
        config.tracking.wandb,
        run_id=run_id,
        run_folder=exports,
        run_config={"run": run.run_id, "step": made["metadata"]["step"]},
        resumed=any(exports.wandb.glob(f"*run-*-{run_id}")),
        used=[checkpoint],
        made=[made],
        job_type="export",
        # `phalanx sync` sends the rows of a run; what an export has to say is whole in W&B's own segments.
        sync_command=f"wandb sync {shlex.quote(str(exports.wandb))}/*run-*-{shlex.quote(run_id)}",
    )
    where = tracker.wait_until_known(config.tracking.wandb.start_timeout_s)
    tracker.close(0)
    if where is not None:
        print(f"lineage in W&B: {where}")
    for notice in tracker.take_notices():
        print(notice, file=sys.stderr)
