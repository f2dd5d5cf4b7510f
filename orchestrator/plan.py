"""RunConfig -> RunPlan: everything that follows from the choices before anything starts. Plan half, pure."""

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from model.config import ModelConfig
from model.hardware import ACCELERATORS
from model.sizing import flops_per_token, num_parameters, parameter_shapes, resolve_vocab
from model.zero import ds_config
from orchestrator.config import RunConfig
from orchestrator.data.manifest import Manifest
from orchestrator.errors import CheckpointMismatchError, ConfigError
from orchestrator.fingerprint import fingerprint, identity, identity_differences
from orchestrator.memory import RankLoad, memory_by_stage, memory_problem, num_moments
from orchestrator.probe import Probe
from orchestrator.spec import BatchShape, RunPlan
from orchestrator.steptime import predicted
from orchestrator.validate import batch_problems

ASSUMED_VOCAB_SIZE = 8192
"""What `prepare` trains by default, for planning before there is data."""
VOCAB_PADDING = 128
"""A model's vocabulary may exceed the tokenizer's by less than this: padding, not a mistake."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """What a run folder fixed at its first start."""

    run_id: str
    identity: dict[str, Any]
    schedule_steps: int


def recorded(plan: RunPlan) -> Recorded:
    """What later starts of the same run are held to; `plan` as read back from plan.json."""
    return Recorded(run_id=plan.run_id, identity=plan.identity, schedule_steps=plan.schedule_steps)


def plan_run(
    config: RunConfig,
    manifest: Manifest | None,
    *,
    device: str,
    resumed: Recorded | None = None,
    probe: Probe | None = None,
) -> RunPlan:
    """The plan of a run on `device` (`cpu` or `cuda`).

    Without a manifest the vocabulary is model.vocab_size, else data.vocab_size, else 8,192. `resumed` is what
    the run folder recorded: its schedule stays, and the batch may then be uneven. `probe` is what was measured of
    this host's CPU. Raises ConfigError with every problem, CheckpointMismatchError where a resume would be another
    run.
    """
    problems = plan_problems(config, manifest, is_first_start=resumed is None)
    if problems:
        raise ConfigError(*problems)
    model = resolve_model(config, manifest)
    found = identity(config, model, manifest)
    schedule_steps = config.optim.schedule_steps or config.train.steps
    run_id = config.run.id or default_run_id(config, found)
    if resumed is not None:
        _check_same_run(resumed, found)
        found, schedule_steps, run_id = resumed.identity, resumed.schedule_steps, resumed.run_id
    batch = BatchShape(
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        world_size=config.cluster.num_workers,
        seq_len=resolved_seq_len(config),
    )
    is_known = device == "cuda" and config.cluster.hardware is not None
    load = rank_load(config, model, device=device)
    parameters, flops = num_parameters(model), flops_per_token(model, batch.seq_len)
    return RunPlan(
        run_id=run_id,
        fingerprint=fingerprint(found),
        identity=found,
        model=model,
        batch=batch,
        precision=config.train.precision,
        zero_stage=config.parallel.zero_stage,
        device=device,
        steps=config.train.steps,
        schedule_steps=schedule_steps,
        parameters=parameters,
        flops_per_token=flops,
        memory_by_stage=memory_by_stage(load),
        peak_flops_per_worker=ACCELERATORS[config.cluster.hardware or ""].peak_flops if is_known else None,
        ds_config=_ds_config(config, model, batch, device),
        predicted=predicted(
            config,
            load,
            probe,
            parameters=parameters,
            flops_per_token=flops,
            micro_steps=batch.micro_steps,
        ),
    )


def at_world_size(config: RunConfig, plan: RunPlan, world_size: int) -> RunPlan:
    """The same run on another number of workers: the same global batches, maybe uneven; schedule, identity and what
    was predicted stay.

    96 samples in micro-batches of 4 on 8 workers are 3 micro-steps; on 7 of them 4, the last of them half padding.
    """
    if world_size == plan.batch.world_size:
        return plan
    resized = replace(config, cluster=replace(config.cluster, num_workers=world_size))
    batch = replace(plan.batch, world_size=world_size)
    return replace(
        plan,
        batch=batch,
        memory_by_stage=memory_by_stage(rank_load(resized, plan.model, device=plan.device)),
        ds_config=_ds_config(config, plan.model, batch, plan.device),
    )


def default_run_id(config: RunConfig, found: dict[str, Any]) -> str:
    """`gpt_125m-1f0c9a3e`: the same command finds the same folder, each trial of a sweep its own."""
    return f"{config.run.name or config.model.name}-{fingerprint(found)[:8]}"


def run_id_of(config: RunConfig, manifest: Manifest | None) -> str:
    """The run's id without a whole plan: where to look for what an earlier start recorded.

    Raises ConfigError, with all other problems, where the vocabulary does not match the data.
    """
    if config.run.id is not None:
        return config.run.id
    if vocabulary_problem(config, manifest) is not None:
        raise ConfigError(*plan_problems(config, manifest, is_first_start=True))
    return default_run_id(config, identity(config, resolve_model(config, manifest), manifest))


def resolved_seq_len(config: RunConfig) -> int:
    return config.train.seq_len or config.model.max_seq_len


def resolve_model(config: RunConfig, manifest: Manifest | None) -> ModelConfig:
    """The model with every null filled in. Raises ConfigError where its vocabulary is not the data's."""
    problem = vocabulary_problem(config, manifest)
    if problem is not None:
        raise ConfigError(problem)
    if manifest is not None:
        return resolve_vocab(config.model, manifest.tokenizer.vocab_size)
    assumed = config.data.vocab_size or ASSUMED_VOCAB_SIZE
    return resolve_vocab(config.model, assumed if config.model.vocab_size is None else None)


def vocabulary_problem(config: RunConfig, manifest: Manifest | None) -> str | None:
    """An explicit model.vocab_size is the tokenizer's, or its padding to less than 128 more."""
    chosen = config.model.vocab_size
    if manifest is None or chosen is None:
        return None
    needed = manifest.tokenizer.vocab_size
    if needed <= chosen < needed + VOCAB_PADDING:
        return None
    return (
        f"model.vocab_size={chosen} does not match the tokenizer of data.path={config.data.path}: "
        f"{needed} tokens; set model.vocab_size={needed} (or null), "
        f"or prepare the data again with data.vocab_size={chosen}"
    )


def plan_problems(config: RunConfig, manifest: Manifest | None, *, is_first_start: bool) -> list[str]:
    """Every reason why a sound config can't be planned, one sentence each.

    What the config alone says is checked before this, when it is composed (`validate.problems`).
    """
    problems = list(batch_problems(config)) if is_first_start else []
    vocabulary = vocabulary_problem(config, manifest)
    if vocabulary is not None:
        problems.append(vocabulary)
    return problems + ([] if manifest is None else _data_problems(config, manifest))


def rank_load(config: RunConfig, model: ModelConfig, *, device: str) -> RankLoad:
    """What one rank carries; `model` is the resolved one."""
    return RankLoad(
        model=model,
        zero_stage=config.parallel.zero_stage,
        world_size=config.cluster.num_workers,
        micro_batch_size=config.train.micro_batch_size,
        seq_len=resolved_seq_len(config),
        precision=config.train.precision,
        moments=num_moments(config.optim),
        offload=config.parallel.offload,
        device=device,
        activation_checkpointing=config.parallel.activation_checkpointing,
        isolate_documents=config.data.isolate_documents,
        bucket_elements=config.parallel.bucket_elements,
    )


def memory_limit_bytes(config: RunConfig, *, device: str) -> int | None:
    """What one rank may use: as configured, else the hardware's; None where neither is known."""
    if config.cluster.memory_bytes_per_worker is not None:
        return config.cluster.memory_bytes_per_worker
    if device == "cuda" and config.cluster.hardware is not None:
        return ACCELERATORS[config.cluster.hardware].memory_bytes
    return None


def memory_refusal(config: RunConfig, plan: RunPlan) -> str | None:
    """One sentence if the plan does not fit a rank's known memory, with the nearest change that does."""
    limit = memory_limit_bytes(config, device=plan.device)
    if limit is None:
        return None
    load = rank_load(config, plan.model, device=plan.device)
    refusal = memory_problem(load, limit, plan.batch.global_batch_size)
    least = config.cluster.min_workers
    if refusal is not None or least is None:
        return refusal
    smallest = memory_problem(replace(load, world_size=least), limit, plan.batch.global_batch_size)
    return smallest and f"with cluster.min_workers={least} left, {smallest}; or raise cluster.min_workers"


def _check_same_run(resumed: Recorded, found: dict[str, Any]) -> None:
    # Null and an explicit length are the same schedule where the lengths agree.
    key = "optim.schedule_steps"
    is_same_schedule = (found[key] or resumed.schedule_steps) == resumed.schedule_steps
    differences = identity_differences(
        resumed.identity, found, run_id=resumed.run_id, ignore=[key] if is_same_schedule else []
    )
    if differences:
        raise CheckpointMismatchError(*differences)


def _data_problems(config: RunConfig, manifest: Manifest) -> list[str]:
    seq_len, needed = resolved_seq_len(config), config.train.global_batch_size
    problems = []
    rows = manifest.train.num_rows(seq_len)
    if rows < needed:
        fewer = f"train.global_batch_size={rows} or fewer, " if rows else ""
        problems.append(
            f"train.global_batch_size={needed} needs {needed} rows of {seq_len} tokens for each step, "
            f"the train split of data.path={config.data.path} has {rows} ({manifest.train.tokens:,} tokens); "
            f"use {fewer}a shorter train.seq_len or more text"
        )
    if config.train.eval_every_steps > 0 and manifest.validation.num_rows(seq_len) == 0:
        problems.append(
            f"train.eval_every_steps={config.train.eval_every_steps} needs a row of {seq_len} tokens, "
            f"the validation split of data.path={config.data.path} has {manifest.validation.tokens} tokens; "
            "use train.eval_every_steps=0 or prepare again with a larger data.validation_fraction"
        )
    return problems


def _ds_config(config: RunConfig, model: ModelConfig, batch: BatchShape, device: str) -> dict[str, Any]:
    sizes = [prod(shape) for shape in parameter_shapes(model).values()]
    return ds_config(
        micro_batch_size=batch.micro_batch_size,
        micro_steps=batch.micro_steps,
        world_size=batch.world_size,
        zero_stage=config.parallel.zero_stage,
        precision=config.train.precision.value,
        optimizer=config.optim.name.value,
        grad_clip=config.optim.grad_clip,
        device=device,
        parameters=sum(sizes),
        largest_parameter=max(sizes),
        offload=config.parallel.offload.value,
        nvme_path=config.parallel.nvme_path,
        bucket_elements=config.parallel.bucket_elements,
        extra=config.parallel.ds_config,
    )
