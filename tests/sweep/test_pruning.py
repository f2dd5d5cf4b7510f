"""ASHA and Hyperband as arithmetic."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweep.pruning import Rungs, bracket, goes_on, rung_problem, rungs_of
from orchestrator.sweep.settings import Pruner, SweepConfig


@pytest.mark.parametrize(
    ("pruner", "least", "factor", "total", "steps"),
    [
        (Pruner.none, 1, 3, 100, ()),
        (Pruner.asha, 1, 4, 64, (1, 4, 16)),  # the paper's example: r=1, R=64, eta=4
        (Pruner.asha, 10, 3, 100, (10, 30, 90)),
        (Pruner.asha, 100, 3, 100, ()),  # the end is no rung: it is the end
    ],
)
def test_where_trials_are_judged(pruner: Pruner, least: int, factor: int, total: int, steps: tuple[int, ...]) -> None:
    assert Rungs(pruner, least, factor).steps(0, total) == steps


def test_the_first_rung_follows_from_the_steps() -> None:
    assert rungs_of(SweepConfig(pruner=Pruner.asha), 900).steps(0, 900) == (100, 300)
    assert rungs_of(SweepConfig(pruner=Pruner.asha, min_steps=20), 900).steps(0, 900) == (20, 60, 180, 540)
    assert rungs_of(SweepConfig(pruner=Pruner.asha), 2).steps(0, 2) == (1,)


@pytest.mark.parametrize(
    ("every", "total", "steps"),
    [
        (75, 150, (75,)),  # 16 and 48: neither has a metric before step 75
        (10, 270, (30, 90)),
        (20, 270, (40, 100)),
        (100, 900, (100, 300)),
        (150, 150, ()),
    ],
)
def test_a_rung_is_where_trials_have_the_metric(every: int, total: int, steps: tuple[int, ...]) -> None:
    assert rungs_of(SweepConfig(pruner=Pruner.asha), total, every).steps(0, total) == steps


def test_a_pruner_that_would_judge_nothing_is_a_problem() -> None:
    late = SweepConfig(pruner=Pruner.asha, min_steps=100)
    assert "no earlier than the end (train.steps=100)" in (rung_problem(rungs_of(late, 100), [50, 100]) or "")
    seldom = rungs_of(SweepConfig(pruner=Pruner.hyperband), 100, 100)
    assert "train.eval_every_steps=100 makes none before the end" in (rung_problem(seldom, [100]) or "")
    assert rung_problem(seldom, [100, 300]) is None
    assert rung_problem(rungs_of(SweepConfig(min_steps=100), 100), [100]) is None


def test_hyperbands_brackets_have_the_papers_sizes() -> None:
    # R=81, eta=3 (arXiv 1603.06560, table 1): 81, 34, 15, 8 and 5 configurations.
    sizes = Counter(bracket(number, 4, 3) for number in range(81 + 34 + 15 + 8 + 5))
    assert sizes == {4: 81, 3: 34, 2: 15, 1: 8, 0: 5}


def test_a_bracket_with_fewer_rungs_begins_later() -> None:
    rungs = Rungs(Pruner.hyperband, 1, 3)
    of = {bracket(number, 4, 3): rungs.steps(number, 81) for number in range(143)}
    assert of == {4: (1, 3, 9, 27), 3: (3, 9, 27), 2: (9, 27), 1: (27,), 0: ()}


def test_the_best_third_goes_on() -> None:
    at_rung: dict[str, float | None] = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 5.0, "e": 4.0, "f": 1.5}
    assert {name for name in at_rung if goes_on(name, at_rung, 3, maximise=False)} == {"b", "f"}
    assert {name for name in at_rung if goes_on(name, at_rung, 3, maximise=True)} == {"d", "e"}


def test_the_first_at_a_rung_goes_on_and_a_diverged_one_never_does() -> None:
    assert goes_on("a", {"a": 9.0}, 4, maximise=False)
    assert not goes_on("a", {"a": None}, 4, maximise=False)
    assert goes_on("b", {"a": None, "b": 9.0}, 4, maximise=False)


def test_of_equals_the_earlier_goes_on() -> None:
    at_rung: dict[str, float | None] = {"late": 1.0, "early": 1.0}
    assert goes_on("late", at_rung, 2, maximise=False)
    assert not goes_on("early", at_rung, 2, maximise=False)


@given(
    values=st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=40),
    factor=st.integers(2, 5),
    maximise=st.booleans(),
)
def test_at_most_one_in_so_many_goes_on_and_always_the_best(
    values: list[float | None], factor: int, maximise: bool
) -> None:
    at_rung = {str(index): value for index, value in enumerate(values)}
    staying = [at_rung[name] for name in at_rung if goes_on(name, at_rung, factor, maximise=maximise)]
    finite = [value for value in values if value is not None]
    assert len(staying) == min(len(finite), max(1, len(values) // factor))
    if finite:
        assert (max if maximise else min)(finite) in staying
