"""What counts as bad numbers: tables, and properties of the robust score."""

import math
import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.control.anomalies import Anomaly, Kind, LossWatch, compare_replicas, spike_score

NAN, INF = math.nan, math.inf
LOSSES = st.floats(0.01, 20, allow_nan=False)


def watch(threshold: float = 10.0, window: int = 8, recent: list[float] | None = None) -> LossWatch:
    return LossWatch(spike_threshold=threshold, spike_window=window, recent=recent or [])


@pytest.mark.parametrize(
    ("loss", "grad_norm", "is_scaled_down", "kind"),
    [
        (2.0, 1.0, False, None),
        (2.0, 1e30, False, None),
        (NAN, 1.0, False, Kind.loss_not_finite),
        (INF, NAN, False, Kind.loss_not_finite),
        (-INF, 1.0, False, Kind.loss_not_finite),
        (2.0, NAN, False, Kind.grad_norm_not_finite),
        (2.0, INF, False, Kind.grad_norm_not_finite),
        (2.0, INF, True, None),  # fp16's loss scaler at work
        (NAN, INF, True, Kind.loss_not_finite),  # no scale mends a forward pass
    ],
)
def test_what_is_not_finite(loss, grad_norm, is_scaled_down, kind):
    found = watch(threshold=0).look(7, loss, grad_norm, is_scaled_down=is_scaled_down)
    assert (found and found.kind) == kind
    if found:
        assert (found.step, found.good_step) == (7, 6)
        assert found.kind.is_of_data


def feed(losses: list[float], **settings) -> list[Anomaly | None]:
    looking = watch(**settings)
    return [looking.look(step, loss, 1.0) for step, loss in enumerate(losses, start=1)]


CALM = [3.0, 3.1, 2.9, 3.05, 2.95, 3.0, 3.1, 2.9]


@pytest.mark.parametrize(
    ("losses", "is_spike"),
    [
        ([*CALM, 3.2], False),
        ([*CALM, 5.0], True),
        ([*CALM, 0.1], False),  # good news
        ([*CALM[:-1], 5.0], False),  # too few to know
        ([*([3.0] * 8), 3.02], False),  # nothing varies: a rise of less than a hundredth is none
        ([*([3.0] * 8), 3.1], True),
        ([3.0, 9.0, 2.9, 9.0, 2.95, 3.0, 3.1, 2.9, 9.0], True),  # those before don't hide it
        ([10, 9, 8, 7, 6, 5, 4, 3, 9], False),  # it falls fast: that varies a lot
        ([0.0] * 8 + [0.0], False),
    ],
)
def test_spikes(losses, is_spike):
    *before, last = feed(losses)
    assert before == [None] * len(before)
    assert (last is not None) == is_spike
    if last is not None:
        assert last.kind is Kind.loss_spike
        assert "robust standard deviations above" in last.message


def test_no_spikes_are_looked_for_unless_asked():
    looking = watch(threshold=0)
    assert all(looking.look(step, loss, 1.0) is None for step, loss in enumerate([*CALM, 1e9]))
    assert looking.recent == [], "and nothing is kept for it"


@given(st.lists(LOSSES, min_size=20, max_size=60), st.integers(8, 16), st.integers(0, 60))
def test_a_watch_that_goes_on_from_what_was_kept_says_the_same(losses, window, cut):
    cut = min(cut, len(losses))
    whole = watch(window=window)
    said = [whole.look(step, loss, 1.0) for step, loss in enumerate(losses)]
    before = watch(window=window)
    first = [before.look(step, loss, 1.0) for step, loss in enumerate(losses[:cut])]
    after = watch(window=window, recent=before.recent)
    second = [after.look(step, loss, 1.0) for step, loss in enumerate(losses[cut:], start=cut)]
    assert first + second == said


@given(st.lists(LOSSES, min_size=3, max_size=40), LOSSES)
def test_the_score_grows_with_the_value_and_is_zero_at_the_median(recent, value):
    middle = statistics.median(recent)
    assert spike_score(middle, recent) == 0
    assert spike_score(value, recent) <= spike_score(value + 1, recent)
    assert (spike_score(value, recent) > 0) == (value > middle)


@given(st.lists(LOSSES, min_size=9, max_size=41), st.data())
def test_fewer_than_half_bad_ones_can_not_hide_another(recent, data):
    """Replacing a quarter of the window by anything changes the threshold only within the range of the rest."""
    bad = data.draw(st.lists(st.floats(0, 1e6), min_size=1, max_size=len(recent) // 4))
    polluted = recent[: len(recent) - len(bad)] + bad
    spread = max(recent) - min(recent)
    assume(spread > 0)
    assert spike_score(max(recent) + 100 * (spread + max(recent)), polluted) > 10


@given(st.floats(0.5, 5), st.floats(0, 0.2), st.integers(0, 2**32 - 1))
def test_no_false_alarm_on_noise(level, noise, seed):
    import random

    source = random.Random(seed)
    assert not any(feed([level + source.gauss(0, noise * level) for _ in range(300)], window=64))


@pytest.mark.parametrize(
    ("checksums", "odd", "words"),
    [
        ([5, 5], None, ""),
        ([5], None, ""),
        ([5, 6], (), "no majority"),
        ([5, 6, 7], (), "no majority"),
        ([5, 5, 6, 6], (), "no majority"),
        ([5, 5, 6], (2,), "rank 2 holds other parameters than the 2 ranks that agree"),
        ([6, 5, 5, 5], (0,), "rank 0 holds"),
        ([5, 1, 5, 2, 5], (1, 3), "ranks 1, 3 hold other parameters than the 3"),
    ],
)
def test_replicas(checksums, odd, words):
    found = compare_replicas(checksums, 40, 30)
    if odd is None:
        assert found is None
        return
    assert (found.kind, found.step, found.good_step, found.ranks) == (Kind.replicas_differ, 40, 30, odd)
    assert words in found.message
    assert not found.kind.is_of_data
