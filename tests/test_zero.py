"""ds_config: the DeepSpeed JSON, as text and as DeepSpeed reads it."""

import json
from typing import Any

import pytest
from golden_texts import check_golden
from hypothesis import given
from hypothesis import strategies as st

from model.zero import OWNED_KEYS, buckets_for, ds_config, ds_config_problems, merge

PLAIN: dict[str, Any] = {
    "micro_batch_size": 4,
    "micro_steps": 2,
    "world_size": 2,
    "zero_stage": 2,
    "precision": "fp32",
    "optimizer": "adamw",
    "grad_clip": 1.0,
    "device": "cpu",
    "parameters": 1_262_720,
    "largest_parameter": 524_288,
}
LARGE: dict[str, Any] = {
    "micro_batch_size": 1,
    "micro_steps": 8,
    "world_size": 64,
    "zero_stage": 3,
    "precision": "bf16",
    "device": "cuda",
    "parameters": 8_030_261_248,
    "largest_parameter": 525_336_576,
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("deepspeed_cpu_zero0", {"zero_stage": 0}),
        ("deepspeed_cpu_zero2", {}),
        ("deepspeed_cpu_zero3_sgd", {"zero_stage": 3, "optimizer": "sgd"}),
        (
            "deepspeed_cuda_zero2_fp16_offload",
            LARGE | {"zero_stage": 2, "precision": "fp16", "offload": "optimizer"},
        ),
        ("deepspeed_cuda_zero3_bf16", LARGE),
        ("deepspeed_cuda_zero3_nvme", LARGE | {"offload": "nvme", "nvme_path": "/local/nvme"}),
    ],
)
def test_golden(name, changes):
    check_golden(f"{name}.json", json.dumps(ds_config(**PLAIN | changes), indent=2) + "\n")


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("offload", ["none", "optimizer", "params", "nvme"])
def test_deepspeed_takes_every_zero_section(stage, device, offload, tmp_path):
    """Its schema refuses unknown keys, so a misspelt one fails here."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    section = ds_config(
        **PLAIN | {"zero_stage": stage, "device": device, "offload": offload, "nvme_path": str(tmp_path)}
    )["zero_optimization"]
    read = DeepSpeedZeroConfig(**section)
    assert read.stage == stage
    assert read.reduce_bucket_size == section["reduce_bucket_size"]
    assert (read.offload_optimizer is None) == (offload == "none")
    assert (read.offload_param is None) == (offload in ("none", "optimizer"))
    if stage == 3:
        assert read.param_persistence_threshold == 0
        assert read.max_live_parameters == 10**9


@given(micro=st.integers(1, 64), steps=st.integers(1, 64), world=st.integers(1, 1024), stage=st.integers(0, 3))
def test_batch_numbers_satisfy_deepspeed_s_own_equation(micro, steps, world, stage):
    config = ds_config(
        **PLAIN | {"micro_batch_size": micro, "micro_steps": steps, "world_size": world, "zero_stage": stage}
    )
    product = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * world
    assert config["train_batch_size"] == product


@pytest.mark.parametrize(
    ("parameters", "bucket_elements", "reduce", "persistence"),
    [
        (1000, None, 131_072, 0),
        (1_000_000, None, 1_000_448, 0),
        (8_000_000_000, None, 500_000_000, 100_000),
        (8_000_000_000, 1_000_000, 1_000_000, 100_000),
    ],
)
def test_buckets_follow_the_model_s_size(parameters, bucket_elements, reduce, persistence):
    buckets = buckets_for(parameters, bucket_elements)
    assert (buckets.reduce, buckets.allgather, buckets.persistence) == (reduce, reduce, persistence)
    assert buckets.prefetch == min(reduce, 50_000_000)


def test_one_nvme_buffer_holds_the_largest_parameter_s_partition():
    section = ds_config(**PLAIN | LARGE | {"offload": "nvme", "nvme_path": "/x"})["zero_optimization"]
    assert section["offload_param"]["buffer_size"] * 64 >= LARGE["largest_parameter"]


def test_user_s_settings_are_merged_last_and_deep():
    extra = {"zero_optimization": {"round_robin_gradients": True}, "wall_clock_breakdown": True}
    config = ds_config(**PLAIN, extra=extra)
    assert config["zero_optimization"]["round_robin_gradients"] is True
    assert config["zero_optimization"]["stage"] == 2
    assert config["wall_clock_breakdown"] is True


json_trees = st.recursive(
    st.integers() | st.none() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
json_dicts = st.dictionaries(st.sampled_from("abc"), json_trees, max_size=3)


@given(base=json_dicts, extra=json_dicts)
def test_merge_lets_extra_win_loses_nothing_and_changes_neither(base, extra):
    before = json.dumps([base, extra])
    merged = merge(base, extra)
    assert set(merged) == {*base, *extra}
    for key, value in extra.items():
        both_dicts = isinstance(value, dict) and isinstance(base.get(key), dict)
        assert merged[key] == (merge(base[key], value) if both_dicts else value)
    assert all(merged[key] == base[key] for key in base if key not in extra)
    assert json.dumps([base, extra]) == before


def test_every_owned_key_is_refused_by_name_of_ours():
    for key, ours in OWNED_KEYS.items():
        extra: Any = 7
        for part in reversed(key.split(".")):
            extra = {part: extra}
        assert ds_config_problems(extra) == [
            f"parallel.ds_config.{key}=7 is decided by the plan; remove it and set {ours} instead"
        ]


def test_other_keys_pass_and_false_counts_as_set():
    assert ds_config_problems({"zero_optimization": {"sub_group_size": 1}, "bf16": {"check": True}}) == []
    assert len(ds_config_problems({"bf16": {"enabled": False}, "train_batch_size": 0})) == 2
