"""From every rank's saved payload to a committed checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.checkpoint.commit import commit, prune
from orchestrator.checkpoint.fencing import Claim, refuse_if_fenced
from orchestrator.checkpoint.layout import PayloadFile
from orchestrator.checkpoint.lineage import Lineage
from orchestrator.checkpoint.marker import DataState, Marker, common_key_check, gather_payloads
from orchestrator.checkpoint.store import Store
from orchestrator.codec import encode
from orchestrator.control.attempt import Message
from orchestrator.control.opening import OpenRun, versions
from orchestrator.control.pruning import metric_of, retention_of
from orchestrator.data.files import local_path
from orchestrator.errors import CheckpointError


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What the marker says beside the tensors."""

    run: OpenRun
    attempt: int
    claim: Claim | None
    """The attempt's right to commit."""
    time_s: float
    """Unix; one for all tries, so that a try that was made and not answered is recognised by the next."""
    step: int
    skipped_windows: tuple[int, ...]
    branch: int
    lineage: Lineage
    """What is left behind is neither counted nor deleted by retention."""
    loss: float | None
    wandb_run_id: str | None


@dataclass(frozen=True, slots=True)
class Committed:
    marker: Marker
    pruned: list[int]
    """Steps that retention deleted."""
    prune_failure: str | None = None
    """Why retention could not delete; the next commit tries again."""


def save_checkpoint(store: Store, saved: Saved, messages: Sequence[Message]) -> Committed:
    """Commit what every rank has written and confirmed, then let retention delete.

    Raises CheckpointError where it is not committed; FencedError where another copy of the run has taken over.
    """
    marker = marker_of(saved, messages)
    commit(store, marker, saved.claim)
    try:
        refuse_if_fenced(store, saved.attempt)  # who was overtaken meanwhile deletes nothing
        config = saved.run.config.checkpoint
        metric = metric_of(saved.run.folder, config)
        pruned = prune(store, retention_of(config), metric, lineage=saved.lineage, whole=marker)
        return Committed(marker, pruned)
    except (CheckpointError, OSError) as error:  # of the store, or of the run folder, which has the evaluations
        return Committed(marker, [], str(error))


def marker_of(saved: Saved, messages: Sequence[Message]) -> Marker:
    run, plan = saved.run, saved.run.plan
    payloads = [PayloadFile.from_dict(message["payload"]) for message in messages]
    files, tensors = gather_payloads(payloads)
    key_check = common_key_check(payloads)
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
        time=saved.time_s,
        data=DataState(saved.step, saved.skipped_windows),
        model=encode(plan.model),
        seq_len=plan.batch.seq_len,
        data_path=absolute(str(run.config.data.path)),
        tokenizer_xxh3_128=run.manifest.tokenizer.xxh3_128,
        files=files,
        tensors=tensors,
        loss=saved.loss,
        branch=saved.branch,
        recent_losses=tuple(messages[0].get("recent_losses", ())),
        schedule={"name": optim.schedule.value, "steps": plan.schedule_steps, "lr": optim.lr},
        loss_scaler=messages[0]["counters"]["loss_scaler"] or None,
        optimizer={**messages[0]["counters"], "name": optim.name.value},
        wandb_run_id=saved.wandb_run_id,
        versions=versions(),
        encryption=_encryption(key_check),
    )


def _encryption(key_check: str | None) -> dict[str, Any] | None:
    if key_check is None:
        return None
    from orchestrator.checkpoint.encryption import facts

    return facts(key_check)


def absolute(path_or_url: str) -> str:
    """So that a checkpoint finds its data from any working directory; URLs stay as they are."""
    local = local_path(path_or_url)
    return path_or_url if local is None else str(local.resolve())
