"""plan_run: the numbers, a resume, and every refusal."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_plan import TINY, config_of, manifest_of, plan_of

from orchestrator.codec import decode, encode
from orchestrator.errors import EXIT_USAGE, CheckpointMismatchError, ConfigError
from orchestrator.memory import held_bytes
from orchestrator.plan import at_world_size, memory_limit_bytes, memory_refusal, plan_run, recorded
from orchestrator.spec import BatchShape, RunPlan


def test_a_plan_in_numbers():
    plan = plan_of("train.global_batch_size=24", "train.micro_batch_size=3", "cluster.num_workers=4")
    assert plan.batch == BatchShape(global_batch_size=24, micro_batch_size=3, world_size=4, seq_len=64)
    assert (plan.batch.micro_steps, plan.batch.tokens_per_step) == (2, 24 * 64)
    assert (plan.model.vocab_size, plan.model.num_kv_heads) == (512, 2)
    assert (plan.steps, plan.schedule_steps, plan.device) == (20, 20, "cpu")
    assert plan.run_id == f"tiny_test-{plan.fingerprint[:8]}"
    assert plan.peak_flops_per_worker is None
    assert plan.ds_config["gradient_accumulation_steps"] == 2
    assert sorted(plan.memory_by_stage) == [0, 1, 2, 3]


def test_a_plan_survives_json():
    plan = plan_of("run.seed=7")
    assert decode(RunPlan, json.loads(json.dumps(encode(plan)))) == plan


def test_peak_and_memory_come_from_the_hardware_table_on_cuda_only():
    config = config_of(*TINY, "cluster.hardware=h100")
    assert plan_run(config, None, device="cuda").peak_flops_per_worker == 989.5e12
    assert plan_run(config, None, device="cpu").peak_flops_per_worker is None
    assert memory_limit_bytes(config, device="cuda") == 80 * 10**9
    assert memory_limit_bytes(config, device="cpu") is None
    config.cluster.memory_bytes_per_worker = 5
    assert memory_limit_bytes(config, device="cuda") == 5


def test_a_resume_keeps_the_schedule_of_the_first_start():
    first = plan_of()
    longer = plan_run(config_of(*TINY, "train.steps=50"), manifest_of(), device="cpu", resumed=recorded(first))
    assert (longer.steps, longer.schedule_steps) == (50, 20)
    assert (longer.run_id, longer.fingerprint) == (first.run_id, first.fingerprint)


def test_a_resume_may_be_uneven_and_a_first_start_may_not():
    overrides = ["train.global_batch_size=10", "train.micro_batch_size=2", "cluster.num_workers=3"]
    first = plan_of(*overrides, "cluster.num_workers=5")
    config = config_of(*TINY, *overrides)
    with pytest.raises(ConfigError, match="is not divisible by micro_batch_size"):
        plan_run(config, manifest_of(), device="cpu")
    resized = plan_run(config, manifest_of(), device="cpu", resumed=recorded(first))
    assert (resized.batch.micro_steps, resized.batch.is_even) == (2, False)
    assert resized.ds_config["train_batch_size"] == 12
    assert resized.run_id == first.run_id


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 9))
def test_at_any_world_size_it_is_the_same_run(global_batch_size, micro_batch_size, world_size):
    words = [f"train.global_batch_size={micro_batch_size * global_batch_size}", "cluster.num_workers=1"]
    config = config_of(*TINY, f"train.micro_batch_size={micro_batch_size}", *words)
    plan = plan_run(config, None, device="cpu")
    resized = at_world_size(config, plan, world_size)
    assert (resized.run_id, resized.identity, resized.schedule_steps) == (
        plan.run_id,
        plan.identity,
        plan.schedule_steps,
    )
    assert resized.batch.tokens_per_step == plan.batch.tokens_per_step
    ds_config = resized.ds_config
    assert ds_config["train_micro_batch_size_per_gpu"] == micro_batch_size
    rows = micro_batch_size * world_size * ds_config["gradient_accumulation_steps"]
    assert ds_config["train_batch_size"] == rows
    assert 0 <= rows - resized.batch.global_batch_size < micro_batch_size * world_size
    assert at_world_size(config, resized, 1) == plan


def test_what_min_workers_would_need_is_refused_before_it_is_needed():
    words = ["cluster.num_workers=8", "train.global_batch_size=8", "train.micro_batch_size=1"]
    roomy = config_of(*TINY, *words)
    plan = plan_run(roomy, None, device="cpu")
    needed = [held_bytes(at_world_size(roomy, plan, size).memory_by_stage[plan.zero_stage], "cpu") for size in (8, 2)]
    assert needed[0] < needed[1]
    limit = f"cluster.memory_bytes_per_worker={needed[1] - 1}"
    assert memory_refusal(config_of(*TINY, *words, limit), plan) is None
    refusal = memory_refusal(config_of(*TINY, *words, limit, "cluster.min_workers=2"), plan)
    assert refusal is not None
    assert refusal.startswith("with cluster.min_workers=2 left, parallel.zero_stage=")
    assert memory_refusal(config_of(*TINY, *words, limit, "cluster.min_workers=8"), plan) is None


def test_a_resume_as_another_run_is_refused_with_every_difference():
    first = recorded(plan_of("run.id=demo"))
    config = config_of(*TINY, "run.id=demo", "run.seed=9", "optim.lr=0.5")
    with pytest.raises(CheckpointMismatchError) as error:
        plan_run(config, manifest_of(), device="cpu", resumed=first)
    assert error.value.exit_code == EXIT_USAGE
    assert error.value.problems == (
        "optim.lr was 0.001 when run demo started, now 0.5; start another run (run.id=...) or set it back",
        "run.seed was 1234 when run demo started, now 9; start another run (run.id=...) or set it back",
    )


@pytest.mark.parametrize(("first", "then"), [([], ["optim.schedule_steps=20"]), (["optim.schedule_steps=20"], [])])
def test_naming_the_schedule_s_length_on_resume_is_no_difference(first, then):
    started = plan_of("run.id=demo", *first)
    again = plan_run(config_of(*TINY, "run.id=demo", *then), manifest_of(), device="cpu", resumed=recorded(started))
    assert (again.schedule_steps, again.fingerprint) == (20, started.fingerprint)
    with pytest.raises(CheckpointMismatchError, match=r"optim\.schedule_steps was"):
        plan_run(
            config_of(*TINY, "run.id=demo", "optim.schedule_steps=21"),
            manifest_of(),
            device="cpu",
            resumed=recorded(started),
        )


@pytest.mark.parametrize("vocab_size", [4096, 4097, 4223])
def test_a_vocabulary_may_be_the_tokenizer_s_or_its_padding(vocab_size):
    plan = plan_of(f"model.vocab_size={vocab_size}", "data.vocab_size=null", manifest=manifest_of(vocab_size=4096))
    assert plan.model.vocab_size == vocab_size


@pytest.mark.parametrize("vocab_size", [99, 4095, 4224])
def test_a_vocabulary_that_does_not_match_is_refused(vocab_size):
    with pytest.raises(ConfigError) as error:
        plan_of(f"model.vocab_size={vocab_size}", "data.vocab_size=null", manifest=manifest_of(vocab_size=4096))
    assert str(error.value) == (
        f"model.vocab_size={vocab_size} does not match the tokenizer of data.path=corpus: 4096 tokens; "
        f"set model.vocab_size=4096 (or null), or prepare the data again with data.vocab_size={vocab_size}"
    )


@pytest.mark.parametrize(
    ("overrides", "vocab_size"),
    [
        (["model.vocab_size=1000", "data.vocab_size=null"], 1000),
        (["data.vocab_size=3000"], 3008),
        (["data.vocab_size=null"], 8192),
    ],
)
def test_without_data_the_vocabulary_is_assumed(overrides, vocab_size):
    plan = plan_run(config_of(*TINY, *overrides), None, device="cpu")
    assert plan.model.vocab_size == vocab_size
    assert plan.identity["data.train"] is None


def test_every_problem_is_reported_at_once():
    config = config_of(*TINY, "model.vocab_size=600", "train.micro_batch_size=3", "train.eval_every_steps=5")
    with pytest.raises(ConfigError) as error:
        plan_run(config, manifest_of(train=400, validation=64, vocab_size=400), device="cpu")
    assert [problem.split(" ")[0] for problem in error.value.problems] == [
        "train.global_batch_size=8",
        "model.vocab_size=600",
        "train.global_batch_size=8",
        "train.eval_every_steps=5",
    ]
    assert error.value.problems[2] == (
        "train.global_batch_size=8 needs 8 rows of 64 tokens for each step, "
        "the train split of data.path=corpus has 6 (400 tokens); "
        "use train.global_batch_size=6 or fewer, a shorter train.seq_len or more text"
    )


def test_a_split_of_exactly_one_global_batch_is_enough():
    assert plan_of(manifest=manifest_of(train=8 * 64 + 1)).batch.global_batch_size == 8
    with pytest.raises(ConfigError, match="has 7"):
        plan_of(manifest=manifest_of(train=8 * 64))
