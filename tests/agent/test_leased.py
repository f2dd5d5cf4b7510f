"""A lease on a real agent with real ranks: what ends without a driver, what stays, and whom it obeys."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from agent.processes import Watched, descendants
from rank.ranks import SAFETY_S, Data, Ranks, open_run

from orchestrator.agent.agent import NodeAgent
from orchestrator.agent.lease import LeaseTerms
from orchestrator.agent.leased import LeasedAgent
from orchestrator.errors import SupersededError

pytestmark = pytest.mark.real

ENDLESS = ("train.steps=1000000", "cluster.num_workers=2", "optim.schedule_steps=1000")
FACTS = {"layout": {"threads": 1}, "group": "g"}
FOREVER = LeaseTerms(timeout_s=1e9, grace_s=1e9)


@pytest.fixture
def own(data: Data) -> Iterator[Ranks]:
    with Ranks(data) as ranks:
        yield ranks


def memfds() -> int:
    """Of snapshots."""
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum("memfd:phalanx-rank" in str(link) for link in links)


def test_without_a_word_the_ranks_end_and_what_they_left_stays(own: Ranks, tmp_path: Path) -> None:
    leased = LeasedAgent(own.agent, 1, FOREVER, FACTS, lambda: None)
    run = open_run(own.data, tmp_path, *ENDLESS)
    with own.start(run) as live:
        pids = live.hear_pids()
        live.hear_until(lambda heard: len(heard.rows) > 3)
        with Watched(pids.values()) as watched:
            leased.adopt(2, LeaseTerms(timeout_s=0.5, grace_s=1e9))  # and no word after this one
            assert watched.living(SAFETY_S) == []
        ends = live.hear_all().exits
    assert {end["is_stopped"] for end in ends.values()} == {False}
    assert all("heard nothing from the driver" in end["reason"] for end in ends.values())

    said = leased.adopt(3, FOREVER)  # the next driver
    assert (said["attempt"]["ranks"], said["attempt"]["world_size"], said["group"]) == ([0, 1], 2, "g")
    with pytest.raises(SupersededError, match=r"attempt 2.* attempt 3 has taken the run over"):
        leased.command(2, "start_store")
    with pytest.raises(SupersededError):
        leased.adopt(2, FOREVER)
    steps = leased.command(3, "sealed_steps")
    assert steps
    again = {event["step"] for event in leased.command(3, "next_events", 0.0) if event["kind"] == "step"}
    assert again >= set(live.heard.rows) - {0}


def test_after_the_grace_everything_is_released(own: Ranks, tmp_path: Path) -> None:
    before, ended = memfds(), threading.Event()
    leased = LeasedAgent(own.agent, 1, FOREVER, FACTS, ended.set)
    with own.start(open_run(own.data, tmp_path, *ENDLESS)) as live:
        live.hear_until(lambda heard: len(heard.rows) > 3)
        assert memfds() > before
        with Watched(descendants(os.getpid()) & set(live.pids().values())) as watched:
            leased.adopt(2, LeaseTerms(timeout_s=0.3, grace_s=0.3))
            assert ended.wait(SAFETY_S)
            assert watched.living(SAFETY_S) == []
        assert memfds() == before
        with pytest.raises(ConnectionError, match="no driver came"):
            leased.renew(2)


def test_words_keep_it_alive(own: Ranks, tmp_path: Path) -> None:
    ended = threading.Event()
    leased = LeasedAgent(own.agent, 1, FOREVER, FACTS, ended.set)
    with own.start(open_run(own.data, tmp_path, *ENDLESS)) as live:
        live.hear_until(lambda heard: len(heard.rows) > 3)
        leased.adopt(2, LeaseTerms(timeout_s=10.0, grace_s=0.0))
        for count in range(4, 40):
            leased.renew(2)
            live.hear_until(lambda heard, count=count: len(heard.rows) > count)
        assert not live.heard.exits
        assert not ended.is_set()
        leased.close(2)
        live.hear_all()
    assert not ended.is_set()  # it was told to end


class Unreleased:
    """An agent whose store does not answer, or that fails as it ends."""

    def __init__(self, close: Callable[[], None]) -> None:
        self.close = close

    def stop_ranks(self, timeout_s: float, why: str) -> None:
        """It has none."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_can_not_be_released_keeps_no_node() -> None:
    answers, terms = threading.Event(), LeaseTerms(timeout_s=0.01, grace_s=0.02)

    def fail() -> None:
        raise RuntimeError("a disk that is gone")

    for close in (answers.wait, fail):
        ended = threading.Event()
        LeasedAgent(cast(NodeAgent, Unreleased(close)), 1, terms, FACTS, ended.set, close_timeout_s=0.1)
        assert ended.wait(SAFETY_S)
    answers.set()
