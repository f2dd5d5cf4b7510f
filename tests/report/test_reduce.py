"""Curves of any length keep their spikes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.reduce import Curve, broken_at, reduced

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


def curve(values: list[float]) -> Curve:
    return Curve(np.arange(1.0, len(values) + 1), np.array(values, dtype=float))


def test_a_spike_of_one_step_in_a_million_survives() -> None:
    values = np.ones(1_000_000)
    values[654_321] = 50.0
    (piece,) = reduced(Curve(np.arange(1_000_000.0), values), 400)
    assert piece.x.size <= 4 * 400
    assert piece.y[piece.x == 654_321] == [50.0]


@given(st.lists(NUMBERS, min_size=1, max_size=300), st.integers(1, 40))
def test_every_bucket_keeps_its_ends_and_extremes(values: list[float], buckets: int) -> None:
    whole = curve(values)
    (piece,) = reduced(whole, buckets)
    assert {*zip(piece.x, piece.y, strict=True)} <= {*zip(whole.x, whole.y, strict=True)}
    assert (np.diff(piece.x) > 0).all()
    assert piece.x.size <= max(4, 4 * buckets)
    assert (piece.x[0], piece.x[-1]) == (whole.x[0], whole.x[-1])
    width = (whole.x[-1] - whole.x[0]) / buckets or 1.0
    for bucket in range(buckets):
        place = np.minimum(((whole.x - whole.x[0]) / width).astype(int), buckets - 1) == bucket
        kept = np.isin(piece.x, whole.x[place])
        if place.any():
            assert piece.y[kept].max() == whole.y[place].max()
            assert piece.y[kept].min() == whole.y[place].min()


def test_what_is_not_finite_breaks_the_line_and_is_told() -> None:
    broken = curve([1.0, 2.0, float("nan"), 3.0, float("inf"), float("inf"), 4.0, 5.0])
    pieces = reduced(broken, 100)
    assert [list(piece.y) for piece in pieces] == [[1.0, 2.0], [3.0], [4.0, 5.0]]
    assert broken_at(broken, 20) == [3.0, 5.0, 6.0]
    assert broken_at(broken, 2) == [3.0, 6.0]
    assert reduced(curve([float("nan")] * 3), 10) == []


def test_a_line_that_always_breaks_stays_small() -> None:
    values = np.ones(100_000)
    values[::2] = np.nan
    assert len(reduced(Curve(np.arange(100_000.0), values), 300)) == 300
