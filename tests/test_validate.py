"""One row per rule: what is set, and what the one sentence must say."""

from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import Activation, ModelConfig, Norm, Positions
from orchestrator.config import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    Device,
    FaultConfig,
    Offload,
    OptimConfig,
    OptimizerName,
    ParallelConfig,
    Precision,
    RunConfig,
    RunSettings,
    SnapshotConfig,
    TrackingConfig,
    TrainConfig,
    WorkerConfig,
)
from orchestrator.validate import batch_problems, problems


def sound(**changes: Any) -> RunConfig:
    """A config without problems, then `changes`: dotted keys with `__` for the dots."""
    config = RunConfig(
        run=RunSettings(),
        model=ModelConfig(
            name="small",
            vocab_size=None,
            hidden_size=64,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            ffn_hidden_size=128,
            max_seq_len=128,
            positions=Positions.rotary,
            norm=Norm.rmsnorm,
            activation=Activation.swiglu,
            bias=False,
            tied_embeddings=True,
        ),
        data=DataConfig(),
        optim=OptimConfig(),
        train=TrainConfig(steps=100, global_batch_size=8, micro_batch_size=2),
        parallel=ParallelConfig(),
        cluster=ClusterConfig(name="local"),
        worker=WorkerConfig(),
        snapshot=SnapshotConfig(),
        checkpoint=CheckpointConfig(),
        fault=FaultConfig(),
        tracking=TrackingConfig(),
    )
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        setattr(reduce(getattr, parents, config), last, value)
    return config


AT_LEAST_ONE = [
    "model__vocab_size", "model__hidden_size", "model__num_layers", "model__num_heads", "model__num_kv_heads",
    "model__ffn_hidden_size", "model__max_seq_len", "data__vocab_size", "data__tokenizer_sample_bytes",
    "data__prefetch_batches", "optim__schedule_steps", "train__steps", "train__global_batch_size",
    "train__micro_batch_size", "train__seq_len", "train__eval_rows", "parallel__bucket_elements",
    "cluster__num_workers", "cluster__min_workers", "cluster__workers_per_node",
    "cluster__cpus_per_worker",
    "cluster__memory_bytes_per_worker", "cluster__memory_bytes_per_node", "worker__threads",
    "fault__max_identical_failures",
    "tracking__every_steps", "tracking__console_every_steps", "checkpoint__local_every_steps",
    "checkpoint__local_keep_last",
]  # fmt: skip
ZERO_IS_FINE = [
    "run__seed", "optim__warmup_steps", "train__eval_every_steps", "snapshot__every_steps",
    "snapshot__replicate_every_steps", "checkpoint__every_steps", "checkpoint__keep_last", "fault__max_restarts",
    "fault__max_rollbacks", "fault__check_replicas_every_steps", "fault__recheck_every_steps",
    "fault__evict_straggler_after_steps", "fault__avoid_after_losses",
]  # fmt: skip
ABOVE_ZERO = [
    "model__norm_eps", "model__rope_theta", "model__init_std", "optim__lr", "optim__eps",
    "cluster__start_timeout_s", "cluster__replace_timeout_s", "worker__start_timeout_s",
    "fault__collective_timeout_s",
]  # fmt: skip
NOT_NEGATIVE = [
    "optim__weight_decay", "optim__grad_clip", "cluster__grow_interval_s", "fault__spike_threshold",
    "fault__straggler_factor",
]  # fmt: skip
BELOW_ONE = ["model__dropout", "data__validation_fraction", "optim__momentum"]
UP_TO_ONE = ["optim__min_lr_ratio", "optim__decay_fraction"]

RANGES = [
    *[(key, value) for key in AT_LEAST_ONE for value in (0, -5)],
    *[(key, -1) for key in ZERO_IS_FINE],
    *[(key, value) for key in ABOVE_ZERO for value in (0.0, -1.0, float("nan"), float("inf"))],
    *[(key, value) for key in NOT_NEGATIVE for value in (-0.1, float("nan"), float("inf"))],
    *[(key, value) for key in BELOW_ONE for value in (-0.1, 1.0, float("nan"))],
    *[(key, value) for key in UP_TO_ONE for value in (-0.1, 1.1, float("nan"))],
    ("run__seed", 2**63),
    ("fault__spike_window", 7),
    ("fault__spike_window", 1001),
    ("data__vocab_size", 256),
    ("parallel__zero_stage", 4),
    ("parallel__zero_stage", -1),
    ("optim__betas", [0.9]),
    ("optim__betas", [0.9, 0.95, 0.99]),
    ("optim__betas", [0.9, 1.0]),
    ("optim__betas", [-0.1, 0.9]),
    ("run__root", ""),
    ("data__text_field", ""),
    ("data__source", 3),
    ("data__source", []),
    ("data__source", ["a.txt", 4]),
    *[("run__id", bad) for bad in ("", ".", "..", "../x", "a/b", "a\\b", "a b", "a#b", "a:b", "a?b", "-x")],
    ("run__id", "x" * 101),
    ("run__name", "a/b"),
    ("model__name", "a:b"),
    ("tracking__wandb__project", ""),
    ("tracking__wandb__project", "a/b"),
    ("cluster__address", "local"),
    ("cluster__address", "host:0"),
    ("cluster__address", "host:port"),
    ("cluster__address", "ray://host:10001"),
    ("cluster__hardware", "h1000"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), RANGES)
def test_a_value_out_of_range_is_named_with_key_and_value(key: str, value: Any) -> None:
    found = problems(sound(**{key: value}))
    assert len(found) == 1
    dotted = key.replace("__", ".")
    shown = repr(value) if isinstance(value, str) and f"={value!r}" in found[0] else value
    assert found[0].startswith(f"{dotted}={shown} ")
    assert "\n" not in found[0]


def test_the_sound_config_has_no_problems() -> None:
    assert problems(sound()) == []
    assert batch_problems(sound()) == []


@pytest.mark.parametrize(
    "change",
    [
        *[{key: 0} for key in ZERO_IS_FINE],
        *[{key: 0.0} for key in (*NOT_NEGATIVE, *BELOW_ONE, *UP_TO_ONE)],
        {"optim__min_lr_ratio": 1.0},
        {"run__id": "trial-3.b_1"},
        {"cluster__address": "auto"},
        {"cluster__address": "10.0.0.1:6379"},
        {"cluster__address": "[fe80::1]:6379"},
        {"cluster__hardware": "h100"},
        {"data__source": "python:stdlib"},
        {"data__source": ["a.txt", "s3://b/c.jsonl"]},
        {"train__seq_len": 128},
        {"optim__warmup_steps": 101},
        {"optim__warmup_steps": 50, "optim__schedule_steps": 50},
        {"model__num_kv_heads": None},
        {"train__precision": Precision.bf16},
        {"train__precision": Precision.fp16},
        {"parallel__offload": Offload.optimizer},
        {"parallel__offload": Offload.params, "parallel__zero_stage": 3},
        {"parallel__offload": Offload.nvme, "parallel__zero_stage": 3, "parallel__nvme_path": "/disk"},
        {"parallel__ds_config": {"zero_optimization": {"overlap_comm": False}}},
        {"cluster__num_workers": 3, "cluster__workers_per_node": 2},
    ],
)
def test_what_lies_on_the_edge_passes(change: dict[str, Any]) -> None:
    assert problems(sound(**change)) == []


COMBINATIONS = [
    (
        {"model__hidden_size": 65},
        "model.hidden_size=65 is not divisible by model.num_heads=4; use model.hidden_size=64 or 68",
    ),
    (
        {"model__hidden_size": 2},
        "model.hidden_size=2 is not divisible by model.num_heads=4; use model.hidden_size=4",
    ),
    (
        {"model__hidden_size": 60},
        "model.positions=rotary needs an even head size, hidden_size / num_heads = 60 / 4 = 15; "
        "use model.hidden_size=64 or model.positions=learned",
    ),
    (
        {"model__num_kv_heads": 3},
        "model.num_kv_heads=3 does not divide model.num_heads=4; use one of 1, 2, 4",
    ),
    (
        {"train__seq_len": 129},
        "train.seq_len=129 is longer than model.max_seq_len=128; use train.seq_len=128 or raise model.max_seq_len",
    ),
    (
        {"model__vocab_size": 300, "data__vocab_size": 301},
        "data.vocab_size=301 is more than model.vocab_size=300, so tokens would have no embedding; "
        "use data.vocab_size=300 or less, or model.vocab_size=null",
    ),
    (
        {"optim__warmup_steps": 51, "optim__schedule_steps": 50},
        "optim.warmup_steps=51 is more than optim.schedule_steps=50, which includes it; "
        "use optim.warmup_steps=5 or optim.schedule_steps=51 and more",
    ),
    (
        {"train__precision": Precision.bf16, "parallel__zero_stage": 0},
        "train.precision=bf16 can't be used with parallel.zero_stage=0, because there DeepSpeed takes a step "
        "of its own before the first one in 16 bits; use parallel.zero_stage=1",
    ),
    (
        {"train__precision": Precision.fp16, "cluster__device": Device.cpu},
        "train.precision=fp16 can't be used with cluster.device=cpu, because DeepSpeed has no fp16 on CPUs; "
        "use train.precision=bf16 or fp32",
    ),
    (
        {"parallel__offload": Offload.optimizer, "parallel__zero_stage": 0},
        "parallel.offload=optimizer can't be used with parallel.zero_stage=0, which keeps the optimizer "
        "whole; use parallel.zero_stage=1, 2 or 3",
    ),
    (
        {"parallel__offload": Offload.params, "parallel__zero_stage": 2},
        "parallel.offload=params needs parallel.zero_stage=3, found 2; "
        "use parallel.zero_stage=3 or parallel.offload=optimizer",
    ),
    (
        {"parallel__offload": Offload.nvme, "parallel__zero_stage": 3},
        "parallel.offload=nvme needs a folder on a local disk; set parallel.nvme_path=FOLDER",
    ),
    (
        {"parallel__nvme_path": "/disk"},
        "parallel.nvme_path=/disk has no effect with parallel.offload=none; "
        "use parallel.offload=nvme or parallel.nvme_path=null",
    ),
    (
        {"parallel__offload": Offload.optimizer, "optim__name": OptimizerName.sgd},
        "parallel.offload=optimizer can't be used with optim.name=sgd, because DeepSpeed steps only Adam on "
        "the CPU; use optim.name=adamw or adam, or parallel.offload=none",
    ),
    (
        {"cluster__num_workers": 2, "cluster__min_workers": 3},
        "cluster.min_workers=3 is more than cluster.num_workers=2; use 2 or fewer",
    ),
    (
        {"parallel__ds_config": {"train_batch_size": 4}},
        "parallel.ds_config.train_batch_size=4 is decided by the plan; "
        "remove it and set train.global_batch_size instead",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), COMBINATIONS)
def test_a_combination_that_cannot_work_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    assert problems(sound(**change)) == [sentence]


def test_every_problem_comes_at_once() -> None:
    config = sound(
        train__steps=-5,
        optim__lr=0.0,
        model__dropout=1.0,
        run__id="a/b",
        parallel__zero_stage=7,
        train__seq_len=4096,
        cluster__num_workers=0,
    )
    keys = {problem.partition("=")[0] for problem in problems(config)}
    assert keys == {
        "train.steps", "optim.lr", "model.dropout", "run.id", "parallel.zero_stage", "train.seq_len",
        "cluster.num_workers",
    }  # fmt: skip


def test_a_batch_that_does_not_divide_names_the_nearest_that_do() -> None:
    config = sound(train__global_batch_size=96, train__micro_batch_size=5, cluster__num_workers=8)
    assert batch_problems(config) == [
        "train.global_batch_size=96 is not divisible by micro_batch_size * world_size = 5 * 8 = 40; use 80 or 120"
    ]
    assert problems(config) == []


@given(batch=st.integers(1, 5000), micro=st.integers(1, 64), workers=st.integers(1, 512))
def test_every_batch_size_that_is_suggested_divides(batch: int, micro: int, workers: int) -> None:
    def found(size: int) -> list[str]:
        return batch_problems(
            sound(train__global_batch_size=size, train__micro_batch_size=micro, cluster__num_workers=workers)
        )

    sentences = found(batch)
    assert bool(sentences) == (batch % (micro * workers) != 0)
    for sentence in sentences:
        suggested = [int(word) for word in sentence.rpartition("; use ")[2].split(" or ")]
        assert suggested
        assert all(size > 0 and not found(size) for size in suggested)


@pytest.mark.parametrize("folder", ["scratch", "s3://bucket/x", "./here", ""])
def test_a_disk_tier_needs_a_folder_that_every_node_finds(folder):
    (problem,) = problems(sound(checkpoint__local_dir=folder))
    assert problem.startswith(f"checkpoint.local_dir={folder} is not a folder that every node finds on its own disk")


def test_the_disk_tier_and_the_storage_are_two_places():
    (problem,) = problems(sound(checkpoint__local_dir="/data/run/", checkpoint__url="/data/run"))
    assert "is checkpoint.url, too" in problem
    assert problems(sound(checkpoint__local_dir="/scratch/x", checkpoint__url="/data/run")) == []


def test_a_snapshot_is_never_the_only_slot():
    (problem,) = problems(sound(snapshot__slots=1))
    assert problem == "snapshot.slots=1 is too small; use 2 or more"
