"""Dimensions as values: what a grid lists, what an open space is judged by, which text a number becomes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweep.space import (
    Choices,
    Dimension,
    Interval,
    contains,
    dimension_text,
    ends,
    grid,
    grid_size,
    is_listed,
    number_text,
    space_problems,
)

LR = Choices("optim.lr", ("1e-3", "3e-3"))
BATCH = Choices("train.global_batch_size", ("8", "16", "32"))
LOG = Interval("optim.lr", 1e-4, 1e-2, is_log=True)
STEPS = Interval("optim.warmup_steps", 1, 50, is_integer=True)


def test_a_grid_has_every_combination_and_the_last_dimension_changes_fastest() -> None:
    trials = grid((LR, BATCH))
    assert len(trials) == grid_size((LR, BATCH)) == 6
    assert [trial["train.global_batch_size"] for trial in trials] == ["8", "16", "32"] * 2
    assert [trial["optim.lr"] for trial in trials] == ["1e-3"] * 3 + ["3e-3"] * 3


def test_only_lists_make_a_grid() -> None:
    assert is_listed((LR, BATCH))
    assert not is_listed((LR, STEPS))


def test_an_open_space_is_judged_by_each_value_and_each_end_once() -> None:
    assert ends((LOG, BATCH)) == [
        {"optim.lr": "0.0001", "train.global_batch_size": "8"},
        {"optim.lr": "0.01", "train.global_batch_size": "8"},
        {"optim.lr": "0.0001", "train.global_batch_size": "16"},
        {"optim.lr": "0.0001", "train.global_batch_size": "32"},
    ]


@given(value=st.floats(1e-9, 1e9), is_integer=st.booleans())
def test_a_numbers_text_is_the_number_to_six_digits(value: float, is_integer: bool) -> None:
    text = number_text(value, is_integer=is_integer)
    if is_integer:
        assert int(text) == round(value)
    else:
        assert float(text) == pytest.approx(value, rel=1e-5)
        assert number_text(float(text), is_integer=False) == text


@pytest.mark.parametrize(
    ("dimension", "text", "is_in"),
    [
        (LR, "1e-3", True),
        (LR, "0.001", False),  # another text is another trial
        (LOG, "0.001", True),
        (LOG, "0.1", False),
        (LOG, "null", False),
        (LOG, "nan", False),
    ],
)
def test_whether_a_changed_space_still_gives_a_value(dimension: Dimension, text: str, is_in: bool) -> None:
    assert contains(dimension, text) is is_in


@pytest.mark.parametrize(
    ("dimension", "text"),
    [
        (LR, "choice(1e-3,3e-3)"),
        (LOG, "tag(log,interval(0.0001,0.01))"),
        (STEPS, "int(interval(1,50))"),
    ],
)
def test_a_dimension_is_shown_in_hydras_grammar(dimension: Dimension, text: str) -> None:
    assert dimension_text(dimension) == text


def test_dimensions_that_cannot_be_searched_are_all_named() -> None:
    space = (Choices("model", ()), Interval("optim.lr", 1, 1), Interval("optim.eps", 0, 1, is_log=True))
    found = space_problems(space)
    assert [problem.split(" ")[0].split("=")[0] for problem in found] == ["model", "optim.lr", "optim.eps"]
    assert all(";" in problem for problem in found)
    assert space_problems((LR, LOG, STEPS)) == []
