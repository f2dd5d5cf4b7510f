"""The step-time estimate: its parts, and that it moves the way hardware does."""

import json
from dataclasses import replace

import pytest

from launch.compose import compose
from model.hardware import ACCELERATORS
from orchestrator.codec import decode, encode
from orchestrator.config import Offload, Precision
from orchestrator.errors import ConfigError
from orchestrator.fit import fits
from orchestrator.memory import HEADROOM, RankLoad
from orchestrator.plan import memory_refusal, plan_run, rank_load
from orchestrator.probe import Probe, Rates, matmul_rate
from orchestrator.simulate.costs import predicted_step_s
from orchestrator.spec import RunPlan, StepTime, TimeSource
from orchestrator.steptime import (
    MATMUL_EFFICIENCY,
    ranks_per_node,
    step_time,
    table_speeds,
)
from orchestrator.validate import problems

LLAMA = ["experiment=llama_8b_h100x64", "data.path=x"]


def timed(words: list[str], micro_steps: int = 4, **changes: object) -> StepTime:
    config = compose(words).config
    plan = plan_run(config, None, device="cuda")
    load: RankLoad = replace(rank_load(config, plan.model, device="cuda"), **changes)
    return step_time(
        load,
        table_speeds("h100"),
        parameters=plan.parameters,
        flops_per_token=plan.flops_per_token,
        micro_steps=micro_steps,
        per_node=ranks_per_node(config),
    )


def test_compute_is_the_tokens_flops_over_what_the_peak_gives():
    config = compose(LLAMA).config
    plan = plan_run(config, None, device="cuda")
    assert plan.predicted is not None
    assert plan.predicted.source is TimeSource.table
    time = plan.predicted.time
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


def test_where_nothing_is_known_of_a_device_there_is_no_estimate():
    fp32 = compose([*LLAMA, "train.precision=fp32"]).config
    assert plan_run(fp32, None, device="cuda").predicted is None
    unnamed = compose(["experiment=quickstart", "train.precision=bf16"]).config
    assert plan_run(unnamed, None, device="cuda").predicted is None
    assert plan_run(unnamed, None, device="cpu").predicted is None
    with pytest.raises(ConfigError, match="--step-s"):
        predicted_step_s(plan_run(unnamed, None, device="cuda"))


def probe(fp32: float = 40e9) -> Probe:
    rates = [
        Rates(
            threads=threads,
            matmul_flops_per_s={Precision.fp32: {64: fp32 * threads / 2, 256: fp32 * threads}},
            memory_bytes_per_s=10e9,
        )
        for threads in (1, 2)
    ]
    return Probe(host="node7", date="2026-11-27T08:00:00+00:00", cpus=2, rates=rates, link_bytes_per_s=1e9)


def test_between_two_widths_the_rate_is_between_theirs_and_outside_that_of_the_nearest():
    rates = probe().at(1)
    assert [matmul_rate(rates, Precision.fp32, width) for width in (8, 64, 128, 256, 9000)] == pytest.approx(
        [20e9, 20e9, 30e9, 40e9, 40e9]
    )
    assert matmul_rate(rates, Precision.bf16, 64) is None
    assert [probe().at(threads).threads for threads in (1, 2, 3, 64)] == [1, 2, 2, 2]


def test_a_cpu_is_assumed_until_it_is_measured_and_the_plan_says_which():
    config = compose(["experiment=quickstart"]).config
    assumed = plan_run(config, None, device="cpu").predicted
    measured = plan_run(config, None, device="cpu", probe=probe()).predicted
    faster = plan_run(config, None, device="cpu", probe=probe(80e9)).predicted
    assert assumed is not None and measured is not None and faster is not None
    assert (assumed.source, measured.source) == (TimeSource.assumption, TimeSource.probe)
    assert "phalanx doctor --probe" in assumed.basis
    assert measured.basis == "probe of node7, 2026-11-27"
    assert faster.time.forward_backward < measured.time.forward_backward
    assert faster.time.communication == measured.time.communication
    plan = plan_run(config, None, device="cpu", probe=probe())
    assert decode(RunPlan, json.loads(json.dumps(encode(plan)))) == plan


def test_ranks_with_more_threads_are_timed_by_what_those_reach():
    two = ["experiment=quickstart", "cluster.cpus_per_worker=2"]
    times = [plan_run(compose(words).config, None, device="cpu", probe=probe()).predicted for words in (two[:1], two)]
    assert times[0] is not None and times[1] is not None
    assert times[1].time.forward_backward < times[0].time.forward_backward


def test_on_cpus_what_fits_the_memory_that_is_given_is_ranked():
    config = compose(["experiment=quickstart", "cluster.memory_bytes_per_worker=100000000"]).config
    plan = plan_run(config, None, device="cpu", probe=probe())
    found = fits(config, plan, probe())
    assert all(fit.memory_bytes <= 100e6 for fit in found)
    assert found[0].time.total <= plan.predicted.time.total


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
    assert memory_refusal(best, again) is None
    assert again.predicted is not None
    assert again.predicted.time == found[0].time
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
