"""Round numbers beside a plot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.axis import Axis, tick_words, value_axis


@pytest.mark.parametrize(
    ("low", "high", "from_zero", "words"),
    [
        (4.87, 8.35, False, ["4", "5", "6", "7", "8", "9"]),
        (2.01, 2.04, False, ["2.01", "2.02", "2.03", "2.04"]),
        (2900.0, 11_342.0, True, ["0", "5,000", "10,000", "15,000"]),
        (0.0, 4e-3, True, ["0", "1e-3", "2e-3", "3e-3", "4e-3"]),
        (3.0, 3.0, False, ["2.6", "2.8", "3.0", "3.2", "3.4"]),
        (0.0, 0.0, True, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-5.0, 5.0, False, ["-6", "-4", "-2", "0", "2", "4", "6"]),
        (2.0, 40_000.0, False, ["1", "10", "100", "1,000", "10,000", "100,000"]),
        (0.0, 1_000_000.0, True, ["0", "0.2 M", "0.4 M", "0.6 M", "0.8 M", "1 M"]),
    ],
)
def test_ticks_are_round_and_told_apart(low: float, high: float, from_zero: bool, words: list[str]) -> None:
    ticks = value_axis(low, high, 300, 0, from_zero=from_zero).ticks(6)
    assert list(map(tick_words(ticks), ticks)) == words


@given(st.floats(-1e12, 1e12), st.floats(0, 1e12), st.booleans())
def test_an_axis_holds_its_values_and_its_ticks(low: float, range_: float, from_zero: bool) -> None:
    axis = value_axis(low, low + range_, 300.0, 10.0, from_zero=from_zero)
    slack = 1e-8 * (axis.step or 0.0) + 1e-9 * abs(low + range_)
    assert axis.low <= low + slack
    assert axis.high >= low + range_ - slack
    ticks = axis.ticks(6)
    assert 1 <= len(ticks) <= 8
    assert all(10.0 <= axis.place(tick) <= 300.0 for tick in ticks)
    assert all(tick_words(ticks)(tick) for tick in ticks)


def test_places() -> None:
    assert Axis(0, 10, 100, 200).place(5) == 150
    assert Axis(1, 100, 0, 100, is_log=True).place(10) == pytest.approx(50)
    assert Axis(0, 10, 300, 0).place(10) == 0
