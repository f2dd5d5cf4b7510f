"""Who is slow: tables, and properties of the comparison with the others."""

import random
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control.stragglers import (
    PHASES,
    REPEAT_STEPS,
    SETTLING,
    WINDOW,
    Straggler,
    StragglerWatch,
    others_median,
    spent_s,
)

ENOUGH = WINDOW + SETTLING


def report(compute_s: float = 0.1, data_s: float = 0.001, step_s: float = 0.2, **other: float) -> dict[str, Any]:
    """Of a rank that waits for the others in what is left of the step."""
    snapshot_s, keep_s = other.get("snapshot_s", 0.0), other.get("keep_s", 0.0005)
    wait_s = step_s - compute_s - data_s - snapshot_s
    return {"step_s": step_s, "data_s": data_s, "snapshot_s": snapshot_s, "keep_s": keep_s, "wait_s": wait_s}


def play(steps: int, reports_at: Any, factor: float = 1.5) -> list[tuple[int, Straggler]]:
    watch = StragglerWatch(factor)
    return [(step, found) for step in range(1, steps + 1) for found in watch.look(reports_at(step))]


def test_what_a_rank_waited_for_others_is_not_its_own():
    (spent,) = spent_s([{"step_s": 1.0, "data_s": 0.2, "snapshot_s": 0.1, "keep_s": 0.05, "wait_s": 0.3}])
    expected = {"data": 0.2, "compute": 0.4, "snapshot": 0.1, "saving": 0.05}
    assert dict(zip(PHASES, spent.tolist(), strict=True)) == pytest.approx(expected)


@pytest.mark.parametrize("world", [2, 3, 4, 9])
@pytest.mark.parametrize(
    ("slow", "phase"),
    [
        ({"compute_s": 0.19}, "compute"),
        ({"data_s": 0.05}, "data"),
        ({"snapshot_s": 0.04}, "snapshot"),
        ({"keep_s": 0.04}, "saving"),
    ],
)
def test_a_rank_that_is_always_slow_is_named_once_with_its_phase(world, slow, phase):
    found = play(ENOUGH + 200, lambda step: [report(**(slow if rank == 1 else {})) for rank in range(world)])
    assert [(step, straggler.rank, straggler.phase) for step, straggler in found] == [(ENOUGH, 1, phase)]
    assert found[0][1].factor > 1.5
    assert f"of each of the last {WINDOW} steps" in found[0][1].message()


def test_a_named_rank_that_stays_slow_is_persistent_until_it_recovers():
    watch = StragglerWatch(1.5, evict_after_steps=10)
    persistent = []
    for step in range(1, ENOUGH + 100):
        is_slow = step < ENOUGH + 40
        watch.look([report(), report(compute_s=0.19 if is_slow else 0.1), report()])
        persistent.append(watch.persistent)
    assert persistent.index(next(filter(None, persistent))) == ENOUGH + 10 - 1
    assert persistent[ENOUGH + 10].rank == 1
    assert persistent[-1] is None


def test_nobody_is_persistent_where_that_is_not_asked_for():
    watch = StragglerWatch(1.5)
    for _ in range(ENOUGH + 100):
        watch.look([report(), report(compute_s=0.19)])
    assert watch.persistent is None


@pytest.mark.parametrize(
    ("name", "slow_at"),
    [
        ("the first steps", lambda step: step <= SETTLING + WINDOW // 2),
        ("now and then", lambda step: step % 3 == 0),
        ("a slow minute", lambda step: 100 <= step < 100 + WINDOW // 2),
    ],
)
def test_who_is_slow_sometimes_is_not_named(name, slow_at):
    assert play(300, lambda step: [report(), report(0.19 if slow_at(step) else 0.1)]) == []


@pytest.mark.parametrize(
    "reports",
    [
        [report(0.19), report(0.19)],  # all are slow: nobody is
        [report(0.1), report(0.13)],  # within the factor
        [report(0.19)],  # alone
        [report(), report(data_s=0.004)],  # four times as long, of next to nothing
    ],
)
def test_who_is_not_out_of_line_is_not_named(reports):
    assert play(200, lambda step: reports) == []


def test_it_is_looked_for_nobody_where_that_is_off():
    assert play(200, lambda step: [report(), report(0.19)], factor=0) == []


def test_a_rank_that_stays_slow_is_named_again_after_a_long_time():
    found = play(ENOUGH + REPEAT_STEPS, lambda step: [report(), report(0.19)])
    assert [step for step, _ in found] == [ENOUGH, ENOUGH + REPEAT_STEPS]


def test_a_rank_that_had_recovered_is_named_again_at_once():
    found = play(300, lambda step: [report(), report(0.1 if 100 <= step < 200 else 0.19)])
    assert len(found) == 2
    assert found[1][0] < 200 + WINDOW


def test_two_slow_ranks_of_six_are_both_named():
    found = play(ENOUGH, lambda step: [report(0.18 if rank in (2, 5) else 0.1) for rank in range(6)])
    assert [straggler.rank for _, straggler in found] == [2, 5]


@given(st.integers(2, 12), st.floats(0, 0.15), st.integers(0, 2**32 - 1))
def test_noise_names_nobody(world, noise, seed):
    source = random.Random(seed)
    found = play(100, lambda step: [report(0.1 * (1 + noise * source.random())) for _ in range(world)])
    assert found == []


@given(st.lists(st.floats(0, 10), min_size=2, max_size=12))
def test_the_median_of_the_others_is_what_it_says(values):
    expected = [statistics.median(values[:i] + values[i + 1 :]) for i in range(len(values))]
    assert others_median(np.array(values)[:, None])[:, 0].tolist() == pytest.approx(expected)
