"""What W&B is told: the arguments of its run, rows, events, the summary. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.config import WandbConfig
from orchestrator.observe.artifacts import wandb_safe, without_user
from orchestrator.observe.goodput import Goodput
from orchestrator.observe.metrics import StepRow
from orchestrator.observe.names import row_values
from orchestrator.places import SECRET_NAME
from orchestrator.runfolder import RunFolder

# Each argument of wandb.init and the variable by which a person sets it: what they exported wins.
_EXPORTED = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
    "job_type": "WANDB_JOB_TYPE",
    "tags": "WANDB_TAGS",
    "resume": "WANDB_RESUME",
    "dir": "WANDB_DIR",
}


def init_arguments(
    config: WandbConfig, run_id: str, run_folder: RunFolder, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Arguments of wandb.init that the environment does not set; the run id is always there."""
    chosen = {
        "project": config.project,
        "entity": config.entity,
        "group": config.group,
        "name": run_id,
        "notes": config.notes,
        "job_type": config.job_type,
        "tags": list(config.tags),
        "resume": "allow",
        "dir": str(run_folder.path.resolve()),
    }
    arguments = {key: value for key, value in chosen.items() if value and not environment.get(_EXPORTED[key])}
    return arguments | {"id": wandb_id(run_id, environment)}


def wandb_id(run_id: str, environment: Mapping[str, str]) -> str:
    """The id of a run's W&B run."""
    return environment.get("WANDB_RUN_ID") or wandb_safe(run_id)


def without_secrets(value: Any, key: str = "") -> Any:
    """A copy in which values under secret-looking keys and users in URLs are `***`."""
    if isinstance(value, Mapping):
        return {name: without_secrets(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner, key) for inner in value]
    if isinstance(value, str):
        return "***" if value and SECRET_NAME.search(key) else without_user(value)
    return value


def wandb_item(record: StepRow | Mapping[str, Any]) -> dict[str, Any]:
    """A row, or an event as the ledger has it, for the client."""
    if isinstance(record, StepRow):
        return {"log": row_values(record), "step": record.step}
    return {"event": event_values(record), "name": record["event"]}


def rewind_point(rollbacks: Sequence[Mapping[str, Any]], *, newest_step: int, newest_attempt: int) -> int | None:
    """The step after which W&B has rows of branches that the run has left since; None where it has none of them.

    Rows of an attempt that a rollback ended were written before it; those of later attempts know of it.
    """
    left = [event["to_step"] for event in rollbacks if event["attempt"] >= newest_attempt]
    return min(left) if left and min(left) < newest_step else None


def summary_values(goodput: Goodput) -> dict[str, Any]:
    """Where the run's time went, for W&B's summary."""
    parts = {f"goodput/{part}(s)": seconds for part, seconds in goodput.seconds().items()}
    whole = {} if goodput.ratio is None else {"goodput(%)": 100 * goodput.ratio}
    return whole | parts | {"goodput/wall(s)": goodput.wall_s}


def event_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an event, as `events/NAME/FIELD`, and the step that they belong to."""
    name = record["event"]
    numbers = {
        f"events/{name}/{field}": value
        for field, value in record.items()
        if field not in ("t", "attempt", "step") and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return numbers if record.get("step") is None else numbers | {"train/step": record["step"]}
