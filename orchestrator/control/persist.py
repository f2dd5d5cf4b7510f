"""From every rank's saved payload to a committed checkpoint."""

import time
from dataclasses import dataclass

from orchestrator.checkpoint.commit import commit, prune
from orchestrator.checkpoint.layout import DataState, Marker, PayloadFile, gather_payloads
from orchestrator.checkpoint.store import Store
from orchestrator.codec import encode
from orchestrator.control.attempt import Message
from orchestrator.control.opening import OpenRun, versions
from orchestrator.data.files import local_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What the marker says beside the tensors."""

    run: OpenRun
    attempt: int
    step: int
    skipped_windows: tuple[int, ...]
    loss: float | None
    wandb_run_id: str | None


def save_checkpoint(store: Store, saved: Saved, messages: list[Message]) -> Marker:
    """Commit what every rank has written and confirmed, then let retention delete. Raises CheckpointError."""
    marker = marker_of(saved, messages)
    commit(store, marker)
    prune(store, saved.run.config.checkpoint.keep_last)
    return marker


def marker_of(saved: Saved, messages: list[Message]) -> Marker:
    run, plan = saved.run, saved.run.plan
    files, tensors = gather_payloads(PayloadFile.from_dict(message["payload"]) for message in messages)
    optim = run.config.optim
    return Marker(
        run_id=plan.run_id,
        fingerprint=plan.fingerprint,
        identity=plan.identity,
        attempt=saved.attempt,
        step=saved.step,
        world_size=len(messages),
        zero_stage=plan.zero_stage,
        precision=plan.precision.value,
        time=time.time(),
        data=DataState(saved.step, saved.skipped_windows),
        model=encode(plan.model),
        seq_len=plan.batch.seq_len,
        data_path=absolute(str(run.config.data.path)),
        tokenizer_xxh3_128=run.manifest.tokenizer.xxh3_128,
        files=files,
        tensors=tensors,
        loss=saved.loss,
        schedule={"name": optim.schedule.value, "steps": plan.schedule_steps, "lr": optim.lr},
        loss_scaler=messages[0]["counters"]["loss_scaler"] or None,
        optimizer={**messages[0]["counters"], "name": optim.name.value},
        wandb_run_id=saved.wandb_run_id,
        versions=versions(),
    )


def absolute(path_or_url: str) -> str:
    """So that a checkpoint finds its data from any working directory; URLs stay as they are."""
    local = local_path(path_or_url)
    return path_or_url if local is None else str(local.resolve())
