"""How often: against Daly's formula computed by hand, and a search for the least loss."""

import math
from dataclasses import replace

import pytest

from orchestrator.simulate.advice import advise, daly_interval_s
from orchestrator.simulate.costs import Costs

COSTS = Costs(
    step_s=2.0, stall_s=0.5, seal_s=0.1, copy_s=0.2, persist_s=10.0, persist_stall_s=4.0, commit_s=0.4,
    load_s=20.0, restore_s=1.0, fetch_s=0.5, start_s=30.0, agent_s=15.0,
)  # fmt: skip


def lost_share(interval_s: float, cost_s: float, failure_s: float) -> float:
    """Of the time: Daly's exact model without restarts, exponential failures."""
    return failure_s / interval_s * (math.exp((interval_s + cost_s) / failure_s) - 1) - 1


@pytest.mark.parametrize(("cost_s", "failure_s"), [(0.5, 3600.0), (30.0, 10_800.0), (300.0, 7200.0)])
def test_no_other_interval_loses_noticeably_less(cost_s: float, failure_s: float) -> None:
    found_s = daly_interval_s(cost_s, failure_s)
    best = min(lost_share(found_s * factor / 100, cost_s, failure_s) for factor in range(20, 500))
    assert lost_share(found_s, cost_s, failure_s) <= best * 1.01 + 1e-9


def test_what_costs_more_than_two_failures_is_done_once_between_them() -> None:
    assert daly_interval_s(300.0, 100.0) == 100.0


def test_advice_is_in_steps_and_never_more_often_than_storage_takes_it() -> None:
    advice = advise(COSTS, wall_s=86_400.0, failures=8, from_storage=1)
    assert advice.failures_interval_s == 10_800.0
    assert advice.snapshot_every_steps == round(daly_interval_s(0.5, 10_800.0) / 2.0)
    assert advice.checkpoint_every_steps == math.ceil(daly_interval_s(4.0, 86_400.0) / 2.0)
    assert not advice.is_storage_bound
    slow = advise(replace(COSTS, persist_s=5000.0), wall_s=86_400.0, failures=8, from_storage=1)
    assert slow.is_storage_bound
    assert slow.checkpoint_every_steps == math.ceil(2 * 5000.5 / 2.0)


def test_a_run_without_failures_has_an_advice_too() -> None:
    assert advise(COSTS, wall_s=3600.0, failures=0, from_storage=0).snapshot_every_steps >= 1
