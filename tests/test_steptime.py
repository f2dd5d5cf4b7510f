"""The step-time estimate: its parts, and that it moves the way hardware does."""

from dataclasses import replace

import pytest

from launch.compose import compose
from model.hardware import ACCELERATORS
from orchestrator.config import Offload
from orchestrator.errors import ConfigError
from orchestrator.fit import HEADROOM, fits
from orchestrator.memory import RankLoad
from orchestrator.plan import plan_run, rank_load
from orchestrator.steptime import (
    MATMUL_EFFICIENCY,
    StepTime,
    model_flops_utilisation,
    planned_step_time,
    ranks_per_node,
    step_time,
)
from orchestrator.validate import problems

LLAMA = ["experiment=llama_8b_h100x64", "data.path=x"]


def timed(words: list[str], micro_steps: int = 4, **changes: object) -> StepTime:
    config = compose(words).config
    plan = plan_run(config, None, device="cuda")
    load: RankLoad = replace(rank_load(config, plan.model, device="cuda"), **changes)
    return step_time(
        load,
        ACCELERATORS["h100"],
        parameters=plan.parameters,
        flops_per_token=plan.flops_per_token,
        micro_steps=micro_steps,
        per_node=ranks_per_node(config),
    )


def test_compute_is_the_tokens_flops_over_what_the_peak_gives():
    config = compose(LLAMA).config
    plan = plan_run(config, None, device="cuda")
    time = planned_step_time(config, plan)
    assert time is not None
    per_rank = plan.batch.tokens_per_step * plan.flops_per_token / 64
    assert time.forward_backward == pytest.approx(per_rank / (989.5e12 * MATMUL_EFFICIENCY))
    assert time.total == time.forward_backward + time.recompute + time.communication + time.update


def test_recomputing_costs_a_third_more_compute_and_no_utilisation():
    with_, without = (timed(LLAMA, activation_checkpointing=on) for on in (True, False))
    assert with_.recompute == pytest.approx(without.forward_backward / 3)
    assert without.recompute == 0


def test_one_rank_sends_nothing_and_more_nodes_never_make_it_faster():
    assert timed(LLAMA, world_size=1).communication == 0
    slow = [timed(LLAMA, 1, world_size=n, seq_len=512).communication for n in (8, 16, 64, 512)]
    assert slow == sorted(slow)
    assert slow[0] > 0


def test_stage_3_sends_half_more_than_stages_0_to_2():
    kept = {stage: timed(LLAMA, 1, zero_stage=stage, seq_len=1) for stage in (1, 2, 3)}
    assert kept[1].communication == pytest.approx(kept[2].communication)
    assert kept[3].communication / kept[1].communication == pytest.approx(1.5, rel=0.01)


def test_offload_is_never_free():
    none, optimizer, params = (
        timed(LLAMA, zero_stage=3, offload=o) for o in (Offload.none, Offload.optimizer, Offload.params)
    )
    assert none.update < optimizer.update < params.update


def test_without_a_known_accelerator_or_in_fp32_there_is_no_estimate():
    config = compose(["experiment=quickstart"]).config
    plan = plan_run(config, None, device="cpu")
    assert planned_step_time(config, plan) is None
    assert model_flops_utilisation(plan, 1.0) is None
    fp32 = compose([*LLAMA, "train.precision=fp32"]).config
    assert planned_step_time(fp32, plan_run(fp32, None, device="cuda")) is None


@pytest.mark.parametrize(
    "words",
    [
        ["model=llama_8b", "cluster=h100x8", "train=bf16", "train.global_batch_size=64"],
        ["model=gpt_1_3b", "cluster=a100x8", "train=bf16", "train.global_batch_size=32", "train.micro_batch_size=1"],
        ["model=gpt_175b", "cluster=h100x8", "train=bf16", "train.global_batch_size=64"],
    ],
)
def test_what_fits_is_ranked_within_memory_and_every_first_choice_is_a_sound_config(words: list[str]):
    words = [*words, "train.micro_batch_size=1", "data.path=x"]
    config = compose(words).config
    plan = plan_run(config, None, device="cuda")
    found = fits(config, plan)
    limit = ACCELERATORS[str(config.cluster.hardware)].memory_bytes * HEADROOM
    assert all(fit.memory_bytes <= limit for fit in found)
    assert [fit.time.total for fit in found] == sorted(fit.time.total for fit in found)
    best = compose([*words, *(f"{key}={value}" for key, value in found[0].overrides().items())]).config
    assert problems(best) == []
    again = plan_run(best, None, device="cuda")
    assert planned_step_time(best, again) == found[0].time
    assert again.batch.micro_steps == found[0].micro_steps


def test_what_fits_nowhere_is_a_sentence_with_the_least_that_is_needed():
    words = ["model=gpt_175b", "cluster=h100x8", "cluster.num_workers=1", "train=bf16", "train.global_batch_size=1"]
    config = compose([*words, "train.micro_batch_size=1", "cluster.memory_bytes_per_worker=4000000000"]).config
    with pytest.raises(ConfigError, match=r"the leanest way needs .* GB per rank"):
        fits(config, plan_run(config, None, device="cuda"))


def test_an_accelerator_that_is_not_named_is_asked_for():
    config = compose(["experiment=quickstart"]).config
    with pytest.raises(ConfigError, match=r"cluster\.hardware=null"):
        fits(config, plan_run(config, None, device="cuda"))
