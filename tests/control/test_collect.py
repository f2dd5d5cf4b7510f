"""Ranks' messages become the world's rows: exact sums, whatever the order of arrival."""

import math
import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.control.collect import Gathering, step_row, with_evaluation

PLAN = SimpleNamespace(batch=SimpleNamespace(tokens_per_step=100), peak_flops_per_worker=None, flops_per_token=6)


def message(rank: int, step: int = 7, **changes):
    return {
        "rank": rank,
        "step": step,
        "attempt": 2,
        "loss_sum": 10.0 * (rank + 1),
        "grad_norm": 0.5,
        "lr": 1e-3,
        "step_s": 0.25 * (rank + 1),
        "data_s": 0.1 / (rank + 1),
        "snapshot_s": 0.001 * rank,
        "keep_s": 0.002 * rank,
        "digest": f"{rank + 1:016x}",
        "rng_digest": f"{rank + 5:016x}",
        "memory_bytes": 1000 + rank,
        "time": 50.0 + rank,
        **changes,
    }


def test_a_row_in_numbers():
    row = step_row(PLAN, [message(0), message(1)])
    assert (row.step, row.attempt, row.world_size) == (7, 2, 2)
    assert (row.loss, row.lr, row.grad_norm) == (0.3, 1e-3, 0.5)
    assert (row.tokens, row.tokens_per_s) == (100, 200.0)
    assert (row.step_s, row.data_s, row.memory_bytes) == (0.5, 0.1, 1001)
    assert row.time == 51.0
    assert row.batch_digest == "0000000000000003"
    assert row.rng_digest == "000000000000000b"
    assert row.mfu is None


def test_mfu_is_the_share_of_all_ranks_peaks():
    plan = SimpleNamespace(batch=PLAN.batch, peak_flops_per_worker=1000.0, flops_per_token=6)
    assert step_row(plan, [message(0), message(1)]).mfu == 6 * 200.0 / 2000.0


def test_the_digest_wraps_at_64_bits():
    row = step_row(PLAN, [message(0, digest="ffffffffffffffff"), message(1, digest="0000000000000003")])
    assert row.batch_digest == "0000000000000002"


def test_a_gathering_waits_for_every_rank_of_a_step_and_keeps_steps_apart():
    gathering = Gathering(3)
    assert gathering.add(message(2, step=1)) is None
    assert gathering.add(message(0, step=2)) is None
    assert gathering.add(message(0, step=1)) is None
    assert gathering.add(message(2, step=1)) is None  # said twice is not said by another
    ranks = gathering.add(message(1, step=1))
    assert [m["rank"] for m in ranks] == [0, 1, 2]
    assert {m["step"] for m in ranks} == {1}
    assert gathering.add(message(1, step=2)) is None
    assert [m["rank"] for m in gathering.add(message(2, step=2))] == [0, 1, 2]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 2**64 - 1)), min_size=1, max_size=9),
    st.randoms(use_true_random=False),
)
def test_a_row_is_the_same_whatever_the_order_of_arrival(said, shuffler: random.Random):
    messages = [message(rank, loss_sum=loss, digest=f"{d:016x}") for rank, (loss, d) in enumerate(said)]
    arriving = shuffler.sample(messages, len(messages))
    gathering = Gathering(len(messages))
    gathered = [found for m in arriving if (found := gathering.add(m)) is not None]
    row = step_row(PLAN, gathered[0])
    assert len(gathered) == 1
    assert row == step_row(PLAN, messages)
    assert row.loss == sum(loss for loss, _ in said) / 100
    assert int(row.batch_digest, 16) == sum(digest for _, digest in said) % 2**64


def test_evaluation_figures():
    row = step_row(PLAN, [message(0)])
    said = [
        {"loss_sum": 30.0, "tokens": 10, "seconds": 0.5},
        {"loss_sum": 10.0, "tokens": 10, "seconds": 0.25},
    ]
    evaluated = with_evaluation(row, said, bytes_per_token=2.5)
    assert evaluated.eval_loss == 2.0
    assert evaluated.eval_perplexity == pytest.approx(math.e**2)
    assert evaluated.eval_bits_per_byte == pytest.approx(2.0 * math.log2(math.e) / 2.5)
    assert evaluated.loss == row.loss


def test_a_rank_without_rows_does_not_weigh():
    said = [{"loss_sum": 30.0, "tokens": 10, "seconds": 0.5}, {"loss_sum": 0.0, "tokens": 0, "seconds": 0.7}]
    evaluated = with_evaluation(step_row(PLAN, [message(0)]), said, 1.0)
    assert (evaluated.eval_loss, evaluated.eval_s) == (3.0, 0.7)


def test_no_evaluated_token_leaves_the_row_as_it_was():
    row = step_row(PLAN, [message(0)])
    assert with_evaluation(row, [{"loss_sum": 0.0, "tokens": 0}], 1.0) is row


def test_a_diverged_loss_has_a_finite_perplexity():
    said = [{"loss_sum": 1e9, "tokens": 1, "seconds": 0.5}]
    assert math.isfinite(with_evaluation(step_row(PLAN, [message(0)]), said, 1.0).eval_perplexity)
