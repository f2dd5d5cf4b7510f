"""Of several live copies of a run on S3 one commits, by the server's own conditional put."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from faulty_store import STATES, FaultyStore, newest_step
from saving import write

from orchestrator.checkpoint.commit import commit
from orchestrator.checkpoint.fencing import Claim, new_claim, newest_attempt, refuse_if_fenced, take
from orchestrator.checkpoint.layout import MARKER
from orchestrator.checkpoint.reader import read_marker
from orchestrator.checkpoint.verify import verify
from orchestrator.errors import FencedError


def test_of_two_live_copies_of_a_run_the_older_commits_nothing_more(proxy):
    """Both claim, both write, both commit: on the server's own conditional put."""
    store = FaultyStore(proxy).store
    older, newer = new_claim(1, "run"), new_claim(2, "run")
    assert take(store, older)
    first = write(store, 10, STATES[10], attempt=1)
    commit(store, first, older)
    assert take(store, newer)
    late = write(store, 20, STATES[20], attempt=1)
    with pytest.raises(FencedError, match="attempt 1 may not commit"):
        commit(store, late, older)
    ours = write(store, 20, STATES[20], attempt=2, seed=5)
    commit(store, ours, newer)
    assert (newest_step(store), read_marker(store, 20).attempt) == (20, 2)
    with pytest.raises(FencedError):
        commit(store, late, older)
    assert verify(store, 20) == []


def test_a_commit_that_looked_before_the_newer_claim_replaces_nothing(proxy):
    """The one gap that is left (see fencing.py): the older one's put comes after the newer one has committed."""
    store = FaultyStore(proxy).store
    older, newer = new_claim(1, "run"), new_claim(2, "run")
    assert take(store, older)
    refuse_if_fenced(store, 1, older)  # it looks, and is alone
    assert take(store, newer)
    ours = write(store, 20, STATES[20], attempt=2, seed=5)
    commit(store, ours, newer)
    late = write(store, 20, STATES[20], attempt=1)
    assert not store.create_exclusive(f"step_00000020/{MARKER}", late.to_json().encode())
    assert (read_marker(store, 20).attempt, verify(store, 20)) == (2, [])


@pytest.mark.parametrize("rounds", [pytest.param(3, id="sample"), pytest.param(40, id="all", marks=pytest.mark.soak)])
def test_of_many_that_claim_and_commit_at_once_one_wins(proxy, rounds):
    for _ in range(rounds):
        store = FaultyStore(proxy).store
        claims = [new_claim(1, "run") for _ in range(4)]
        marker = write(store, 10, STATES[10])
        start = threading.Barrier(len(claims))

        def attempt(claim: Claim, store=store, start=start, marker=marker) -> bool:
            start.wait()
            if not take(store, claim):
                return False
            commit(store, marker, claim)
            return True

        with ThreadPoolExecutor(len(claims)) as threads:
            won = list(threads.map(attempt, claims))
        assert won.count(True) == 1
        assert (newest_step(store), newest_attempt(store)) == (10, 1)
