"""A save, a load, retention and a claim on an S3 server that fails at every request in turn."""

import pytest
from faulty_store import STATES, FaultyStore, at_every_request, digest_of, newest_step, saved

from orchestrator.checkpoint.commit import committed_steps, prune
from orchestrator.checkpoint.fencing import new_claim, newest_attempt, refuse_if_fenced, take
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import verify

COUNTS = [pytest.param(5, id="sample"), pytest.param(None, id="all", marks=pytest.mark.soak)]


@pytest.fixture(scope="module")
def digests(proxy) -> dict[int, str]:
    calm = FaultyStore(proxy).store
    saved(*STATES)(calm)
    return {step: digest_of(calm, step) for step in STATES}


@pytest.mark.parametrize("count", COUNTS)
def test_a_fault_at_any_request_of_a_save(proxy, digests, count):
    """The client's own retries outlast one fault; of many, the save fails cleanly or has happened."""

    def check(store: Store, has_worked: bool) -> None:
        step = newest_step(store)
        assert step == 20 or (step == 10 and not has_worked)
        assert digest_of(store, step) == digests[step]
        assert verify(store, 10) == []

    at_every_request(proxy, count, prepare=saved(10), act=saved(20), check=check)


@pytest.mark.parametrize("count", COUNTS)
def test_a_fault_at_any_request_of_a_load(proxy, digests, count):
    """Never wrong bytes, never a good checkpoint set aside: the right state, or an error of the store's."""

    def load(store: Store) -> None:
        assert newest_step(store) == 20
        assert digest_of(store, 20) == digests[20]

    def check(store: Store, has_worked: bool) -> None:
        assert committed_steps(store) == [10, 20]

    at_every_request(proxy, count, prepare=saved(10, 20), act=load, check=check)


@pytest.mark.parametrize("count", COUNTS)
def test_a_fault_at_any_request_of_retention(proxy, digests, count):
    """Whatever stops it, all that is still committed is whole, and the next one finishes the work."""

    def delete(store: Store) -> None:
        prune(store, Retention(keep_last=1))

    def check(store: Store, has_worked: bool) -> None:
        left = committed_steps(store)
        assert left == [30] or not has_worked
        for step in left:
            assert verify(store, step) == []
        assert (newest_step(store), digest_of(store, 30)) == (30, digests[30])
        delete(store)
        assert committed_steps(store) == [30]

    at_every_request(proxy, count, prepare=saved(10, 20, 30), act=delete, check=check)


@pytest.mark.parametrize("count", COUNTS)
def test_a_fault_at_any_request_of_a_claim(proxy, count):
    """A claim that was not answered is put again by the first commit; nobody else ever has its number."""
    ours = new_claim(1, "run")

    def claim(store: Store) -> None:
        assert take(store, ours), "nobody else is there"
        refuse_if_fenced(store, 1, ours)

    def check(store: Store, has_worked: bool) -> None:
        claim(store)
        assert not take(store, new_claim(1, "run"))
        assert newest_attempt(store) == 1

    at_every_request(proxy, count, prepare=lambda store: None, act=claim, check=check)
