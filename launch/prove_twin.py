"""A config's scaled-down twin: the same stage, precision, optimizer and schedule, on a model that two cores train.

Plan half: from a config to override words.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from model.config import Activation
from orchestrator.config import Offload, RunConfig

HIDDEN_SIZE = 64
NUM_LAYERS = 2
NUM_HEADS = 4
SEQ_LEN = 64
GLOBAL_BATCH_SIZE = 16
MICRO_BATCH_SIZE = 2
VOCAB_SIZE = 400
CHECKPOINTS = 6
"""So many in a run, so that kills meet saves."""
PACKAGES = ("json", "email", "asyncio")
"""Of the standard library: half a megabyte of real text, prepared in seconds."""


def prepare_words(config: RunConfig, data: Path, library: Path) -> list[str]:
    """Overrides of `prepare` for the twin's data in the folder `data`."""
    sources = ",".join(quoted(str(library / package / "*.py")) for package in PACKAGES)
    return [
        *(f"{key}={value}" for key, value in _model(config).items()),
        f"data.source=[{sources}]",
        f"data.path={quoted(str(data))}",
        "data.tokenizer=null",
        f"data.vocab_size={VOCAB_SIZE}",
        "data.validation_fraction=0.1",
        "cluster.address=null",
    ]


def twin_words(config: RunConfig, *, steps: int, num_workers: int, root: Path, data: Path) -> list[str]:
    """Overrides that come after a config's own and make it its twin: `steps` steps on `num_workers` workers here.

    Of the config stay ZeRO stage and offload, precision, activation checkpointing, DeepSpeed's settings, optimizer
    and schedule (its warm-up and length in proportion), seed, snapshots, and how workers start.
    """
    optim, scale = config.optim, steps / config.train.steps
    schedule_steps = None if optim.schedule_steps is None else max(steps, round(optim.schedule_steps * scale))
    values: dict[str, object] = {
        **_model(config),
        "data.path": str(data),
        "train.steps": steps,
        "train.seq_len": SEQ_LEN,
        "train.global_batch_size": GLOBAL_BATCH_SIZE,
        "train.micro_batch_size": MICRO_BATCH_SIZE,
        "train.eval_every_steps": 0,
        "optim.warmup_steps": min(round(optim.warmup_steps * scale), steps // 2),
        "optim.schedule_steps": schedule_steps,
        "parallel.bucket_elements": None,
        "cluster.num_workers": num_workers,
        "cluster.min_workers": None,
        "cluster.workers_per_node": None,
        "cluster.cpus_per_worker": 1,
        "cluster.device": "auto",
        "cluster.hardware": None,
        "cluster.memory_bytes_per_worker": None,
        "cluster.address": None,
        "cluster.network_interface": None,
        "worker.threads": 1,
        "checkpoint.every_steps": max(1, steps // CHECKPOINTS),
        "checkpoint.url": None,
        "checkpoint.local_dir": None if config.checkpoint.local_dir is None else str(root.resolve() / "disks"),
        "checkpoint.init_from": None,
        "checkpoint.encrypt": False,
        "checkpoint.key_file": None,
        "tracking.every_steps": 1,
        "tracking.wandb.mode": "disabled",
        "run.root": str(root),
    }
    if config.parallel.offload is Offload.nvme:
        values["parallel.offload"] = Offload.params.value
    return [f"{key}={_word(value)}" for key, value in values.items()]


def _model(config: RunConfig) -> dict[str, object]:
    """Same kinds of layers, other sizes; half the key and value heads where they are grouped."""
    model = config.model
    is_grouped = model.num_kv_heads is not None and model.num_kv_heads < model.num_heads
    return {
        "model.vocab_size": "null",
        "model.hidden_size": HIDDEN_SIZE,
        "model.num_layers": NUM_LAYERS,
        "model.num_heads": NUM_HEADS,
        "model.num_kv_heads": NUM_HEADS // 2 if is_grouped else "null",
        "model.ffn_hidden_size": (11 if model.activation is Activation.swiglu else 16) * HIDDEN_SIZE // 4,
        "model.max_seq_len": max(SEQ_LEN, 128),
    }


def world_size_problems(config: RunConfig, num_workers: int, world_sizes: Sequence[int]) -> list[str]:
    """World sizes that do not divide the twin's batch, and a comparison across them where losses are not the same."""
    most = GLOBAL_BATCH_SIZE // MICRO_BATCH_SIZE
    options = [("--workers", num_workers), *(("--world-sizes", size) for size in world_sizes)]
    problems = [
        f"{option} {size}: the twin's {GLOBAL_BATCH_SIZE} samples in micro-batches of {MICRO_BATCH_SIZE} feed "
        f"{', '.join(str(each) for each in range(1, most + 1) if most % each == 0)} workers; use one of those"
        for option, size in options
        if size < 1 or most % size
    ]
    if world_sizes and config.model.dropout > 0:
        problems.append(
            f"model.dropout={config.model.dropout:g}: losses are compared across world sizes without dropout only; "
            "add model.dropout=0 or leave --world-sizes out"
        )
    return problems


def quoted(text: str) -> str:
    """As a value in Hydra's override grammar."""
    return json.dumps(text)


def _word(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value) if isinstance(value, str) and "/" in value else str(value)
