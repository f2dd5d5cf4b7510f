"""Ranges and combinations of a composed config: one sentence per problem, all of them. Plan half.

Types and names of keys were checked before this (by the schema); whether data, memory and nodes suffice is
checked after it (by the plan). A sentence says key, value, need and a way out.
"""

import math
import re
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from model.config import Positions
from model.hardware import hardware_problem
from model.zero import ds_config_problems
from orchestrator.config import BestMetric, Device, Offload, OptimizerName, Precision, RunConfig
from orchestrator.places import place_problems, variable_problems

MIN_TOKENIZER_VOCABULARY = 257
"""Byte-level BPE: 256 bytes and the end-of-text token."""
MAX_NAME_LENGTH = 100
"""W&B takes ids of up to 128 characters; the default id adds 9 to the name."""
MAX_PORT = 65_535
MAX_SPIKE_WINDOW = 1_000
"""Losses in the small state of a snapshot slot, whose room is fixed."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WANDB_FORBIDDEN = "/\\#?%:"

# Dotted key -> least value. Null passes wherever the schema allows null.
_AT_LEAST: dict[str, int] = {
    "run.seed": 0,
    "model.vocab_size": 1,
    "model.hidden_size": 1,
    "model.num_layers": 1,
    "model.num_heads": 1,
    "model.num_kv_heads": 1,
    "model.ffn_hidden_size": 1,
    "model.max_seq_len": 1,
    "data.vocab_size": MIN_TOKENIZER_VOCABULARY,
    "data.tokenizer_sample_bytes": 1,
    "data.prefetch_batches": 1,
    "optim.warmup_steps": 0,
    "optim.schedule_steps": 1,
    "train.steps": 1,
    "train.global_batch_size": 1,
    "train.micro_batch_size": 1,
    "train.seq_len": 1,
    "train.eval_every_steps": 0,
    "train.eval_rows": 1,
    "parallel.bucket_elements": 1,
    "cluster.num_workers": 1,
    "cluster.min_workers": 1,
    "cluster.workers_per_node": 1,
    "cluster.cpus_per_worker": 1,
    "cluster.memory_bytes_per_worker": 1,
    "cluster.slurm.time_limit_min": 1,
    "cluster.slurm.notice_s": 1,
    "cluster.slurm.spare_nodes": 0,
    "cluster.slurm.gpus_per_node": 0,
    "cluster.slurm.cpus_per_node": 1,
    "cluster.kuberay.spare_nodes": 0,
    "cluster.kuberay.cpus_per_node": 1,
    "cluster.kuberay.gpus_per_node": 0,
    "cluster.kuberay.head_cpus": 1,
    "cluster.kuberay.backoff_limit": 0,
    "cluster.kuberay.ttl_s": 0,
    "cluster.kuberay.termination_grace_s": 30,
    "cluster.memory_bytes_per_node": 1,
    "worker.threads": 1,
    "snapshot.every_steps": 0,
    "snapshot.replicate_every_steps": 0,
    "snapshot.slots": 2,
    "checkpoint.every_steps": 0,
    "checkpoint.keep_last": 0,
    "checkpoint.local_every_steps": 1,
    "checkpoint.local_keep_last": 1,
    "checkpoint.keep_every_steps": 0,
    "checkpoint.keep_best": 0,
    "fault.max_restarts": 0,
    "fault.max_identical_failures": 1,
    "fault.max_rollbacks": 0,
    "fault.evict_straggler_after_steps": 0,
    "fault.avoid_after_losses": 0,
    "fault.spike_window": 8,
    "fault.check_replicas_every_steps": 0,
    "fault.recheck_every_steps": 0,
    "tracking.every_steps": 1,
    "tracking.console_every_steps": 1,
}
_ABOVE_ZERO = (
    "model.norm_eps",
    "model.rope_theta",
    "model.init_std",
    "optim.lr",
    "optim.eps",
    "cluster.start_timeout_s",
    "cluster.replace_timeout_s",
    "cluster.slurm.preflight.timeout_s",
    "worker.start_timeout_s",
    "checkpoint.retry_timeout_s",
    "checkpoint.final_timeout_s",
    "fault.collective_timeout_s",
    "fault.hang_constant_s",
    "fault.lease_timeout_s",
    "fault.preemption_grace_s",
)
_ZERO_OR_MORE = (
    "optim.weight_decay",
    "optim.grad_clip",
    "fault.hang_timeout_factor",
    "fault.spike_threshold",
    "fault.straggler_factor",
    "fault.driver_grace_s",
    "cluster.grow_interval_s",
)
_SHARES = ("optim.min_lr_ratio", "optim.decay_fraction")
"""From 0 to 1, both included."""
_SHARES_BELOW_ONE = (
    "model.dropout",
    "data.validation_fraction",
    "optim.momentum",
    "cluster.slurm.preflight.min_rate",
)
_MAX_SEED = 2**63 - 1


def problems(config: RunConfig) -> list[str]:
    """Every range and combination that can't work, one sentence each; an empty list is a sound config.

    Not here: whether the global batch divides (`batch_problems`), because a resized run may be uneven.
    """
    return [
        *_ranges(config),
        *_names(config),
        *_tracking(config),
        *_data(config),
        *_model(config),
        *_optim(config),
        *_precision(config),
        *_parallel(config),
        *_cluster(config),
        *_checkpoint(config),
        *_fault(config),
        *place_problems(config),
        *variable_problems(config),
    ]


def batch_problems(config: RunConfig) -> list[str]:
    """A global batch that does not divide over the ranks: refused at the first start of a run only.

    96 samples in micro-batches of 5 on 8 workers: 96 is not a multiple of 40; 80 and 120 are.
    """
    batch, micro, world_size = (
        config.train.global_batch_size,
        config.train.micro_batch_size,
        config.cluster.num_workers,
    )
    per_pass = micro * world_size
    if min(batch, micro, world_size) < 1 or batch % per_pass == 0:
        return []
    below = batch // per_pass * per_pass
    way_out = f"use {below} or {below + per_pass}" if below else f"use {per_pass}"
    return [
        f"train.global_batch_size={batch} is not divisible by "
        f"micro_batch_size * world_size = {micro} * {world_size} = {per_pass}; {way_out}"
    ]


def _ranges(config: RunConfig) -> Iterator[str]:
    for key, least in _AT_LEAST.items():
        value = _value(config, key)
        if value is not None and value < least:
            yield f"{key}={value} is too small; use {least} or more"
    for key in _ABOVE_ZERO:
        value = _value(config, key)
        if value is not None and not 0 < value < math.inf:
            yield f"{key}={value} is out of range; use a finite number above 0"
    for key in _ZERO_OR_MORE:
        if not 0 <= _value(config, key) < math.inf:
            yield f"{key}={_value(config, key)} is out of range; use 0 or a finite number above it"
    for key in _SHARES:
        if not 0 <= _value(config, key) <= 1:
            yield f"{key}={_value(config, key)} is out of range; use a number from 0 to 1"
    for key in _SHARES_BELOW_ONE:
        if not 0 <= _value(config, key) < 1:
            yield f"{key}={_value(config, key)} is out of range; use 0 or more and less than 1"
    if config.run.seed > _MAX_SEED:
        yield f"run.seed={config.run.seed} is too large; use {_MAX_SEED} (2**63 - 1) or less"
    if not 0 <= config.parallel.zero_stage <= 3:
        yield f"parallel.zero_stage={config.parallel.zero_stage} is not a ZeRO stage; use 0, 1, 2 or 3"


def name_problem(key: str, name: str, max_length: int) -> str | None:
    if not _NAME.fullmatch(name):
        return (
            f"{key}={name!r} is not a name; use letters, digits, '.', '_' and '-', beginning with a letter or a digit"
        )
    if len(name) > max_length:
        return f"{key}={name} has {len(name)} characters; use {max_length} or fewer"
    return None


def _names(config: RunConfig) -> Iterator[str]:
    """Run ids become folder names, W&B ids and Ray actor names: only what all of them take."""
    for key in ("run.id", "run.name", "model.name"):
        name = _value(config, key)
        if name is not None and (problem := name_problem(key, name, MAX_NAME_LENGTH)) is not None:
            yield problem
    if not config.run.root:
        yield "run.root='' names no folder; use run.root=runs"
    project = config.tracking.wandb.project
    if not project or any(char in _WANDB_FORBIDDEN for char in project):
        yield (
            f"tracking.wandb.project={project!r} is not a name W&B takes; "
            f"use one without any of {' '.join(_WANDB_FORBIDDEN)}"
        )


def _tracking(config: RunConfig) -> Iterator[str]:
    port = config.tracking.prometheus.port
    if port is not None and not 0 <= port <= MAX_PORT:
        yield f"tracking.prometheus.port={port} is not a port; use 1024 to {MAX_PORT}, or 0 for a free one"


def _data(config: RunConfig) -> Iterator[str]:
    source, vocab_size, rows = config.data.source, config.data.vocab_size, config.model.vocab_size
    patterns = source if isinstance(source, list) else [source]
    if source is not None and not (patterns and all(isinstance(item, str) and item for item in patterns)):
        yield (
            f"data.source={source!r} is not a source; use a file, a glob, a URL or a list of them, "
            "as in data.source=[a.txt,b.jsonl]"
        )
    if not config.data.text_field:
        yield "data.text_field='' names no field; use data.text_field=text"
    if vocab_size is not None and rows is not None and vocab_size > rows:
        yield (
            f"data.vocab_size={vocab_size} is more than model.vocab_size={rows}, so tokens would have no "
            f"embedding; use data.vocab_size={rows} or less, or model.vocab_size=null"
        )


def _model(config: RunConfig) -> Iterator[str]:
    model, seq_len = config.model, config.train.seq_len
    if model.hidden_size > 0 and model.num_heads > 0:
        if model.hidden_size % model.num_heads:
            below = model.hidden_size // model.num_heads * model.num_heads
            choices = f"{below} or {below + model.num_heads}" if below else str(model.num_heads)
            yield (
                f"model.hidden_size={model.hidden_size} is not divisible by "
                f"model.num_heads={model.num_heads}; use model.hidden_size={choices}"
            )
        elif model.positions is Positions.rotary and model.hidden_size // model.num_heads % 2:
            yield (
                f"model.positions=rotary needs an even head size, "
                f"hidden_size / num_heads = {model.hidden_size} / {model.num_heads} = "
                f"{model.hidden_size // model.num_heads}; use model.hidden_size="
                f"{model.hidden_size + model.num_heads} or model.positions=learned"
            )
    kv_heads = model.num_kv_heads
    if kv_heads is not None and kv_heads > 0 and model.num_heads > 0 and model.num_heads % kv_heads:
        divisors = [n for n in range(1, model.num_heads + 1) if model.num_heads % n == 0]
        yield (
            f"model.num_kv_heads={kv_heads} does not divide model.num_heads={model.num_heads}; "
            f"use one of {', '.join(map(str, divisors))}"
        )
    if seq_len is not None and seq_len > model.max_seq_len > 0:
        yield (
            f"train.seq_len={seq_len} is longer than model.max_seq_len={model.max_seq_len}; "
            f"use train.seq_len={model.max_seq_len} or raise model.max_seq_len"
        )


def _optim(config: RunConfig) -> Iterator[str]:
    optim = config.optim
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        yield (
            f"optim.betas={optim.betas} is out of range; use two numbers of 0 or more and less than 1, "
            "as in optim.betas=[0.9,0.95]"
        )
    # A trial of a recipe with fewer steps than its warm-up is fine; two lengths that contradict are not.
    if optim.schedule_steps is not None and optim.warmup_steps > optim.schedule_steps > 0:
        yield (
            f"optim.warmup_steps={optim.warmup_steps} is more than "
            f"optim.schedule_steps={optim.schedule_steps}, which includes it; "
            f"use optim.warmup_steps={optim.schedule_steps // 10} or "
            f"optim.schedule_steps={optim.warmup_steps} and more"
        )


def _precision(config: RunConfig) -> Iterator[str]:
    precision = config.train.precision
    if precision is not Precision.fp32 and config.parallel.zero_stage == 0:
        yield (
            f"train.precision={precision} can't be used with parallel.zero_stage=0, because there "
            "DeepSpeed takes a step of its own before the first one in 16 bits; use parallel.zero_stage=1"
        )
    if precision is Precision.fp16 and config.cluster.device is Device.cpu:
        yield (
            "train.precision=fp16 can't be used with cluster.device=cpu, because DeepSpeed has no fp16 on "
            "CPUs; use train.precision=bf16 or fp32"
        )


def _parallel(config: RunConfig) -> Iterator[str]:
    parallel, offload = config.parallel, config.parallel.offload
    if offload is Offload.optimizer and parallel.zero_stage == 0:
        yield (
            "parallel.offload=optimizer can't be used with parallel.zero_stage=0, which keeps the optimizer "
            "whole; use parallel.zero_stage=1, 2 or 3"
        )
    if offload in (Offload.params, Offload.nvme) and parallel.zero_stage != 3:
        yield (
            f"parallel.offload={offload} needs parallel.zero_stage=3, found {parallel.zero_stage}; "
            "use parallel.zero_stage=3 or parallel.offload=optimizer"
        )
    if offload is Offload.nvme and not parallel.nvme_path:
        yield "parallel.offload=nvme needs a folder on a local disk; set parallel.nvme_path=FOLDER"
    if offload is not Offload.nvme and parallel.nvme_path is not None:
        yield (
            f"parallel.nvme_path={parallel.nvme_path} has no effect with parallel.offload={offload}; "
            "use parallel.offload=nvme or parallel.nvme_path=null"
        )
    if offload is not Offload.none and config.optim.name is OptimizerName.sgd:
        yield (
            f"parallel.offload={offload} can't be used with optim.name=sgd, because DeepSpeed steps only "
            "Adam on the CPU; use optim.name=adamw or adam, or parallel.offload=none"
        )
    yield from ds_config_problems(parallel.ds_config)


def _cluster(config: RunConfig) -> Iterator[str]:
    cluster = config.cluster
    if cluster.min_workers is not None and cluster.min_workers > cluster.num_workers:
        yield (
            f"cluster.min_workers={cluster.min_workers} is more than cluster.num_workers={cluster.num_workers}; use "
            f"{cluster.num_workers} or fewer"
        )
    if cluster.hardware is not None and (problem := hardware_problem(cluster.hardware)):
        yield problem
    if cluster.address is not None and cluster.address != "auto":
        host, _, port = cluster.address.rpartition(":")
        if not host or "/" in host or not (port.isdecimal() and 0 < int(port) < 2**16):
            yield (
                f"cluster.address={cluster.address} is not the address of a Ray cluster; use auto or "
                "HOST:PORT, as in cluster.address=10.0.0.1:6379"
            )


def _checkpoint(config: RunConfig) -> Iterator[str]:
    checkpoint = config.checkpoint
    local_dir = checkpoint.local_dir
    if local_dir is not None and not local_dir.startswith(("/", "~/")):
        yield (
            f"checkpoint.local_dir={local_dir} is not a folder that every node finds on its own disk; use an "
            "absolute path, as in checkpoint.local_dir=/scratch/phalanx (a URL belongs in checkpoint.url)"
        )
    if local_dir is not None and checkpoint.url is not None and local_dir.rstrip("/") == checkpoint.url.rstrip("/"):
        yield (
            f"checkpoint.local_dir={local_dir} is checkpoint.url, too; checkpoints there would delete each other: "
            "use another folder"
        )
    if checkpoint.keep_best > 0 and checkpoint.best_metric is BestMetric.eval_loss:
        if config.train.eval_every_steps == 0:
            yield (
                "checkpoint.best_metric=eval_loss needs evaluations, train.eval_every_steps=0 makes none; set "
                "train.eval_every_steps or use checkpoint.best_metric=loss"
            )
        elif checkpoint.every_steps > 0 and checkpoint.every_steps % config.train.eval_every_steps:
            yield (
                f"checkpoint.best_metric=eval_loss needs an evaluation at each checkpoint, but "
                f"checkpoint.every_steps={checkpoint.every_steps} is not a multiple of "
                f"train.eval_every_steps={config.train.eval_every_steps}; make it one"
            )


def _fault(config: RunConfig) -> Iterator[str]:
    fault = config.fault
    if fault.check_replicas_every_steps > 0 and config.parallel.zero_stage == 3:
        yield (
            f"fault.check_replicas_every_steps={fault.check_replicas_every_steps} has nothing to compare with "
            "parallel.zero_stage=3, where no parameter is held twice; use fault.recheck_every_steps"
        )
    if fault.spike_window > MAX_SPIKE_WINDOW:
        yield (
            f"fault.spike_window={fault.spike_window} is too large, because the losses go with every snapshot; use "
            f"{MAX_SPIKE_WINDOW} or less"
        )
    if fault.recheck_every_steps > 0 and config.snapshot.every_steps != 1:
        yield (
            f"fault.recheck_every_steps={fault.recheck_every_steps} needs a snapshot of the step before, but "
            f"snapshot.every_steps={config.snapshot.every_steps}; use snapshot.every_steps=1"
        )


def _value(config: RunConfig, key: str) -> Any:
    return attrgetter(key)(config)
