import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.retry import ANY, FIRST_WAIT_S, LONGEST_WAIT_S, SLOW_WAIT_S, Patience, retried, wait_s
from orchestrator.errors import CheckpointError, StoreError, StoreFault


class Clock:
    """Time passes only by waiting."""

    def __init__(self, hurry_after: int | None = None) -> None:
        self.now_s = 0.0
        self.waits: list[float] = []
        self._hurry_after = hurry_after

    def __call__(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> bool:
        self.now_s += seconds
        self.waits.append(seconds)
        return self._hurry_after is not None and len(self.waits) >= self._hurry_after


def failing(times: int, fault: StoreFault = StoreFault.busy):
    tries = itertools.count()

    def work() -> int:
        tried = next(tries)
        if tried < times:
            raise StoreError(f"try {tried}", fault)
        return tried

    return work


def test_what_passes_is_tried_again():
    clock, told = Clock(), []
    result = retried(
        failing(4), Patience(600.0), pause=clock.pause, clock=clock, on_wait=lambda e: told.append(str(e))
    )
    assert result == 4
    assert told == ["try 0", "try 1", "try 2", "try 3"]
    for number, wait in enumerate(clock.waits):
        assert FIRST_WAIT_S * 2**number / 2 <= wait <= FIRST_WAIT_S * 2**number


@pytest.mark.parametrize("fault", sorted(ANY - {StoreFault.busy}))
def test_what_does_not_pass_is_raised_at_once_unless_asked_for(fault):
    clock = Clock()
    with pytest.raises(StoreError, match="try 0"):
        retried(failing(1, fault), Patience(600.0), pause=clock.pause, clock=clock)
    assert clock.waits == []
    assert retried(failing(1, fault), Patience(600.0, ANY), pause=clock.pause, clock=clock) == 1
    assert SLOW_WAIT_S / 2 <= clock.waits[0] <= SLOW_WAIT_S


@given(timeout_s=st.floats(0.0, 1e4), fault=st.sampled_from(sorted(ANY)))
def test_the_time_is_bounded_and_the_last_try_is_at_its_end(timeout_s, fault):
    clock = Clock()
    with pytest.raises(StoreError):
        retried(failing(10**9, fault), Patience(timeout_s, ANY), pause=clock.pause, clock=clock)
    assert clock.now_s == pytest.approx(timeout_s)


def test_the_time_may_have_begun_before():
    clock = Clock()
    clock.now_s = 100.0
    with pytest.raises(StoreError):
        retried(failing(10**9), Patience(60.0), pause=clock.pause, clock=clock, started_s=50.0)
    assert clock.now_s == pytest.approx(110.0)


def test_who_is_hurried_tries_once_more():
    clock = Clock(hurry_after=2)
    with pytest.raises(StoreError, match="try 2"):
        retried(failing(10**9), Patience(600.0), pause=clock.pause, clock=clock)
    assert len(clock.waits) == 2


def test_other_errors_are_not_the_stores():
    def work() -> None:
        raise CheckpointError("damaged")

    with pytest.raises(CheckpointError, match="damaged"):
        retried(work, Patience(600.0, ANY), pause=Clock().pause)


@given(tries=st.integers(1, 10**6), fault=st.sampled_from(sorted(ANY)), jitter=st.floats(0, 1, exclude_max=True))
def test_waits_are_bounded_and_grow(tries, fault, jitter):
    wait = wait_s(tries, fault, jitter)
    assert FIRST_WAIT_S / 2 <= wait <= LONGEST_WAIT_S
    assert wait <= wait_s(tries + 1, fault, jitter)
