"""The lease: what an agent may do without its driver, as arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agent.lease import MAX_INTERVALS_PER_LOOK, Lease, LeaseTerms, Verdict

TERMS = LeaseTerms(timeout_s=10.0, grace_s=20.0)


def after(seconds: float, terms: LeaseTerms = TERMS) -> Verdict:
    """What a look once a second says at last."""
    lease = Lease(terms)
    verdicts = [lease.look(1.0, 1.0) for _ in range(int(seconds))]
    return verdicts[-1]


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(1, "held"), (9, "held"), (10, "lapsed"), (29, "lapsed"), (30, "ended"), (99, "ended")]
)
def test_held_then_lapsed_then_ended(seconds: int, verdict: str) -> None:
    assert after(seconds) == Verdict(verdict)


def test_without_grace_a_lapse_is_the_end() -> None:
    assert after(10, LeaseTerms(10.0, 0.0)) is Verdict.ended


def test_a_word_in_time_starts_anew_even_after_a_lapse() -> None:
    lease = Lease(TERMS)
    assert [lease.look(1.0, 1.0) for _ in range(15)][-1] is Verdict.lapsed
    lease.renew()
    assert lease.look(1.0, 1.0) is Verdict.held


def test_time_in_which_nobody_could_look_counts_for_two_looks() -> None:
    """A machine that was suspended for an hour gives its driver the rest of the lease to say something."""
    lease = Lease(TERMS)
    assert lease.look(3600.0, 1.0) is Verdict.held
    assert lease.silent_s == MAX_INTERVALS_PER_LOOK
    assert [lease.look(1.0, 1.0) for _ in range(8)][-1] is Verdict.lapsed


@given(looks=st.lists(st.tuples(st.booleans(), st.floats(-5.0, 1e6)), max_size=60), interval_s=st.floats(0.01, 5.0))
def test_whoever_was_heard_less_than_a_lease_ago_is_never_stopped(
    looks: list[tuple[bool, float]], interval_s: float
) -> None:
    lease, since_word_s = Lease(TERMS), 0.0
    for is_renewed, elapsed_s in looks:
        if is_renewed:
            lease.renew()
            since_word_s = 0.0
        since_word_s += max(0.0, elapsed_s)
        verdict = lease.look(elapsed_s, interval_s)
        if since_word_s < TERMS.timeout_s:
            assert verdict is Verdict.held
        if verdict is Verdict.ended:
            assert since_word_s >= TERMS.timeout_s + TERMS.grace_s
