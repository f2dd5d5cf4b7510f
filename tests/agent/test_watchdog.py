"""What is a hang and what is not, as tables and properties: no clock, no process."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agent.watchdog import (
    MIN_STEPS,
    WINDOW,
    Habits,
    HangLimits,
    Phase,
    Position,
    RankProgress,
    Stillness,
    Usual,
    judge,
)

LIMITS = HangLimits(factor=3.0, constant_s=5.0, unlearned_s=300.0, storing_s=1800.0)
INTERVAL_S = 0.1
seconds = st.floats(0.001, 1000.0)


def rank(number: int, position: Position, still_s: float, state: str = "S", limit_s: float = 8.0) -> RankProgress:
    return RankProgress(number, 0, position, still_s, limit_s, usual_s=1.0, process_state=state)


def computing(step: int = 7, micro_step: int = 0, entered: int = 4, left: int = 4) -> Position:
    return Position(step, Phase.compute, micro_step, entered, left)


IN_COLLECTIVE = computing(entered=5)


def taught(step_s: list[float], **phases: float) -> Habits:
    habits = Habits(LIMITS)
    for one in step_s:
        habits.add_step(one)
    for name, value in phases.items():
        habits.add_phase(Phase[name], value)
    return habits


# ---- how long is too long


@pytest.mark.parametrize("phase", [Phase.data, Phase.compute, Phase.snapshot, Phase.update, Phase.vote])
@given(step_s=seconds, count=st.integers(MIN_STEPS, 2 * WINDOW))
def test_three_steps_and_a_constant(phase: Phase, step_s: float, count: int) -> None:
    assert taught([step_s] * count).limit_s(phase) == pytest.approx(3 * step_s + 5)


@pytest.mark.parametrize("phase", set(Phase) - {Phase.storing})
def test_what_has_not_been_seen_may_take_as_long_as_a_start(phase: Phase) -> None:
    assert taught([1.0] * (MIN_STEPS - 1), evaluation=1.0, saving=1.0).limit_s(phase) == 300.0


def test_steps_too_short_to_be_seen_one_by_one_count_all_the_same() -> None:
    habits = Habits(LIMITS)
    habits.add_step(0.01, steps=MIN_STEPS)
    assert habits.limit_s(Phase.compute) == pytest.approx(5.03)


@pytest.mark.parametrize("phase", [Phase.starting, Phase.evaluation, Phase.saving])
def test_the_first_evaluation_and_the_first_snapshot_are_not_judged_by_steps(phase: Phase) -> None:
    assert taught([1.0] * WINDOW).limit_s(phase) == 300.0


def test_a_phase_longer_than_a_step_has_its_own_time() -> None:
    habits = taught([1.0] * WINDOW, evaluation=20.0, saving=0.01)
    assert habits.limit_s(Phase.evaluation) == 3 * 20 + 5
    assert habits.limit_s(Phase.saving) == 3 * 1 + 5


def test_the_last_checkpoint_may_take_what_its_store_may() -> None:
    assert taught([1.0] * WINDOW, storing=0.1).limit_s(Phase.storing) == 1805.0


def test_one_step_across_a_suspended_night_teaches_nothing() -> None:
    assert taught([1.0] * 40 + [30_000.0] + [1.0] * 5).limit_s(Phase.compute) == pytest.approx(8.0)


def test_a_slow_step_in_every_eight_is_normal() -> None:
    assert taught(([1.0] * 7 + [20.0]) * 8).limit_s(Phase.compute) == pytest.approx(65.0)


@given(st.lists(seconds, min_size=1, max_size=200))
def test_the_usual_time_is_one_of_the_recent(values: list[float]) -> None:
    usual = Usual()
    for value in values:
        usual.add(value)
    recent = sorted(values[-WINDOW:])
    assert usual.seconds in recent
    assert sum(value <= usual.seconds for value in recent) >= 0.9 * len(recent)
    assert sum(value >= usual.seconds for value in recent) >= 0.1 * len(recent)


# ---- how long a rank stands still


def look(stillness: Stillness, position: Position, elapsed_s: float = INTERVAL_S, starved_s: float = 0.0) -> float:
    stillness.look(position, elapsed_s=elapsed_s, interval_s=INTERVAL_S, starved_s=starved_s)
    return stillness.seconds


def test_a_rank_that_does_not_move_grows_still() -> None:
    stillness = Stillness()
    assert look(stillness, computing()) == 0
    for looks in range(1, 100):
        assert look(stillness, computing()) == pytest.approx(looks * INTERVAL_S)


@pytest.mark.parametrize(
    "moved",
    [
        computing(step=8),
        computing(micro_step=1),
        computing(entered=5),
        computing(entered=5, left=5),
        Position(7, Phase.update, 0, 4, 4),
    ],
)
def test_any_movement_counts(moved: Position) -> None:
    stillness = Stillness()
    for _ in range(50):
        look(stillness, computing())
    assert look(stillness, moved) == 0


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), max_size=50))
def test_no_look_counts_for_more_than_two_intervals(looks: list[tuple[float, float]]) -> None:
    """A machine that was suspended, an agent that was not scheduled, a clock that jumped."""
    stillness = Stillness()
    look(stillness, computing())
    for elapsed_s, starved_s in looks:
        before = stillness.seconds
        after = look(stillness, computing(), elapsed_s, starved_s)
        assert 0 <= after - before <= min(2 * INTERVAL_S, max(0.0, elapsed_s - starved_s)) + 1e-9


def test_a_rank_that_gets_no_cpu_is_not_still() -> None:
    stillness = Stillness()
    for _ in range(10_000):
        assert look(stillness, computing(), starved_s=INTERVAL_S) == 0


# ---- who is to blame


@pytest.mark.parametrize(
    ("ranks", "culprits"),
    [
        pytest.param([rank(0, IN_COLLECTIVE, 9), rank(1, computing(), 9)], [1], id="one does not come"),
        pytest.param([rank(0, IN_COLLECTIVE, 9), rank(1, computing(), 7)], None, id="it may still come"),
        pytest.param([rank(0, IN_COLLECTIVE, 900), rank(1, computing(), 0)], None, id="it is slow, but moves"),
        pytest.param([rank(0, computing(), 9), rank(1, computing(), 9)], [0, 1], id="all equally far"),
        pytest.param([rank(0, computing(), 9), rank(1, computing(), 9, "T")], [1], id="one is stopped"),
        pytest.param([rank(0, computing(), 9, "D"), rank(1, computing(), 9)], [0], id="one waits for a device"),
        pytest.param([rank(0, computing(), 9), rank(1, computing(), 2, "T")], None, id="stopped just now"),
        pytest.param([rank(0, IN_COLLECTIVE, 9), rank(1, IN_COLLECTIVE, 9)], [0, 1], id="all in one collective"),
        pytest.param(
            [rank(0, computing(entered=5, left=5), 9), rank(1, IN_COLLECTIVE, 9)], [1], id="one does not leave it"
        ),
        pytest.param(
            [rank(0, computing(micro_step=3), 9), rank(1, computing(micro_step=2), 9)], [1], id="micro-step"
        ),
        pytest.param([rank(0, Position(7, Phase.data), 9), rank(1, computing(), 9)], [0], id="its loader is stuck"),
        pytest.param(
            [rank(0, Position(8, Phase.data), 9), rank(1, Position(7, Phase.vote), 9)], [1], id="a step behind"
        ),
        pytest.param([rank(0, Position(9, Phase.done), 900), rank(1, computing(), 9)], [1], id="one is done"),
        pytest.param([rank(0, Position(9, Phase.done), 900)], None, id="all are done"),
        pytest.param([], None, id="nobody is there"),
    ],
)
def test_the_one_that_the_others_wait_for(ranks: list[RankProgress], culprits: list[int] | None) -> None:
    for seen in (ranks, ranks[::-1]):
        hang = judge(seen)
        assert (None if hang is None else [culprit.rank for culprit in hang.culprits]) == culprits


positions = st.builds(
    Position,
    st.integers(0, 3),
    st.sampled_from(Phase),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 2),
)
progress = st.builds(
    RankProgress,
    st.integers(0, 99),
    st.just(0),
    positions,
    st.floats(0, 100),
    st.floats(1, 100),
    st.none(),
    st.sampled_from(["", "S", "R", "D", "T"]),
)


@given(st.lists(progress, max_size=8, unique_by=lambda one: one.rank))
def test_no_verdict_without_cause(ranks: list[RankProgress]) -> None:
    hang = judge(ranks)
    living = [one for one in ranks if one.position.phase is not Phase.done]
    if any(one.still_s <= one.limit_s for one in living) and len({one.position for one in living}) == 1:
        assert hang is None or all(culprit.process_state in "DT" for culprit in hang.culprits)
    if hang is not None:
        assert all(culprit.still_s > culprit.limit_s for culprit in hang.culprits)
        assert {culprit.position for culprit in hang.culprits} == {min(one.position for one in living)}
        assert hang.message()


@given(st.lists(progress, min_size=1, max_size=8, unique_by=lambda one: one.rank))
def test_one_that_moves_behind_all_others_is_enough_to_wait(ranks: list[RankProgress]) -> None:
    moving = RankProgress(100, 0, Position(-1), 0.0, 8.0)
    assert judge([*ranks, moving]) is None


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        (
            [rank(0, computing(), 9.04, "T"), rank(1, IN_COLLECTIVE, 9)],
            "no progress for 9.0 s in forward and backward of step 8, where 1 s are usual; "
            "its process was stopped by a signal (SIGSTOP); the others wait for it",
        ),
        (
            [rank(0, IN_COLLECTIVE, 9), rank(1, IN_COLLECTIVE, 9)],
            "no progress for 9.0 s in forward and backward of step 8, where 1 s are usual; "
            "all ranks are in the same collective: the network, or its library",
        ),
        (
            [rank(0, computing(), 9), rank(1, computing(), 9), rank(2, IN_COLLECTIVE, 9)],
            "no progress for 9.0 s in forward and backward of step 8, where 1 s are usual; "
            "2 ranks are equally far: what they share is to blame",
        ),
        (
            [rank(3, Position(7, Phase.data), 9)],
            "no progress for 9.0 s in waiting for data of step 8, where 1 s are usual; see its stack in its log",
        ),
    ],
)
def test_in_words(ranks: list[RankProgress], said: str) -> None:
    hang = judge(ranks)
    assert hang is not None
    assert hang.message() == said


# ---- a million healthy steps


@given(st.integers(0, 2**32), st.floats(0.01, 3.0), st.floats(0, 0.9))
def test_no_alarm_in_noisy_healthy_steps(seed: int, step_s: float, noise: float) -> None:
    """Steps that vary by a factor of up to three, a busy machine now and then: nobody hangs."""
    dice = random.Random(seed)
    habits, stillness = Habits(LIMITS), Stillness()
    for step in range(40):
        lasts_s = step_s * (1 + noise * dice.random()) * (2.5 if dice.random() < 0.1 else 1.0)
        looks = int(lasts_s / INTERVAL_S)
        for _ in range(looks):
            still_s = look(stillness, computing(step=step))
            seen = RankProgress(0, 0, computing(step=step), still_s, habits.limit_s(Phase.compute))
            assert judge([seen]) is None
        habits.add_step(lasts_s)
