from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.schedule import SCHEDULES, learning_rate


def rates(schedule, steps, **changes):
    settings = {
        "lr": 1.0, "warmup_steps": 4, "schedule_steps": 20, "min_lr_ratio": 0.1, "decay_fraction": 0.25,
    } | changes  # fmt: skip
    return [round(learning_rate(step, schedule=schedule, **settings), 6) for step in steps]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # steps:      0,    3,   4,   8,        12,   15,       16,       18,       19,       20,  100
        ("cosine", [0.25, 1.0, 1.0, 0.868198, 0.55, 0.299993, 0.231802, 0.134254, 0.108647, 0.1, 0.1]),
        ("linear", [0.25, 1.0, 1.0, 0.775, 0.55, 0.38125, 0.325, 0.2125, 0.15625, 0.1, 0.1]),
        ("constant", [0.25, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("wsd", [0.25, 1.0, 1.0, 1.0, 1.0, 1.0, 0.82, 0.46, 0.28, 0.1, 0.1]),
    ],
)
def test_table(schedule, expected):
    assert rates(schedule, [0, 3, 4, 8, 12, 15, 16, 18, 19, 20, 100]) == expected


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_odd_lengths_do_not_divide_by_zero(schedule):
    end = 1.0 if schedule == "constant" else 0.1
    assert rates(schedule, [0, 1], warmup_steps=0, schedule_steps=1) == [1.0, end]
    assert rates(schedule, [8, 9, 10], warmup_steps=10, schedule_steps=10) == [0.9, 1.0, end]
    assert rates(schedule, [9, 30], warmup_steps=10, schedule_steps=5) == [1.0, end]


def test_wsd_without_a_decay_drops_at_the_end():
    assert rates("wsd", [19, 20], decay_fraction=0.0) == [1.0, 0.1]
    assert rates("wsd", [3, 4, 12], decay_fraction=1.0) == [1.0, 1.0, 0.55]


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule='cosin' is not known; known: cosine, linear, constant, wsd"):
        rates("cosin", [0])


@given(
    schedule=st.sampled_from(SCHEDULES),
    warmup_steps=st.integers(0, 50),
    schedule_steps=st.integers(1, 200),
    min_lr_ratio=st.floats(0, 1),
    decay_fraction=st.floats(0, 1),
)
def test_rises_during_warmup_then_never_rises_and_stays_in_range(
    schedule, warmup_steps, schedule_steps, min_lr_ratio, decay_fraction
):
    rate = [
        learning_rate(
            step,
            schedule=schedule,
            lr=2.0,
            warmup_steps=warmup_steps,
            schedule_steps=schedule_steps,
            min_lr_ratio=min_lr_ratio,
            decay_fraction=decay_fraction,
        )
        for step in range(max(warmup_steps, schedule_steps) + 2)
    ]
    warm, rest = rate[:warmup_steps], rate[warmup_steps:]
    assert all(0 < a < b for a, b in pairwise(warm))
    assert all(a >= b - 1e-12 for a, b in pairwise(rest))
    assert all(2.0 * min_lr_ratio - 1e-12 <= r <= 2.0 for r in rest)
    assert rest[-1] == pytest.approx(2.0 if schedule == "constant" else 2.0 * min_lr_ratio)
