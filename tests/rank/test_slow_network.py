"""A network that is slower than training: copies in the peer's memory are rarer, and as frequent again once it is
not."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from rank.ranks import ADDRESS, SECRET, Heard, LiveAttempt, Ranks, open_run
from rank.slow_line import SlowLine

from orchestrator.agent.agent import NodeAgent
from orchestrator.checkpoint.slots import Share, newest_common_step
from orchestrator.control.snapshotmemory import SnapshotCounts
from orchestrator.control.specs import COPIES_OF_RANK

pytestmark = pytest.mark.real

WORLD = 2
SLOW = 24
"""Steps in which the slow network carries one snapshot of every rank."""
COPIES = 4


@pytest.fixture
def peer() -> Iterator[NodeAgent]:
    agent = NodeAgent(1, ADDRESS, is_warm=False, threads=1)
    agent.set_peer(SECRET, None)
    yield agent
    agent.close()


def copied_at(heard: Heard, after: int = 0) -> list[int]:
    """The steps after which rank 0 knew of one more step that every rank's peer holds."""
    counts = {m["step"]: SnapshotCounts(*m["snapshots"]) for m in heard.by_kind["step"] if m["rank"] == 0}
    return [b for a, b in pairwise(sorted(counts)) if b > after and counts[b].copied > counts[a].copied]


def slow_down(live: LiveAttempt, line: SlowLine, bytes_per_step: float) -> int:
    """Until some copies have come over a line that carries so much in a step; the step at which it became slow."""
    line.stop()
    began = granted = max(live.heard.rows)

    def has_seen_enough(heard: Heard) -> bool:
        nonlocal granted
        line.allow((max(heard.rows) - granted) * bytes_per_step)
        granted = max(heard.rows)
        return len(copied_at(heard, began)) > COPIES

    live.hear_until(has_seen_enough)
    return began


def test_copies_are_as_frequent_as_the_network_allows(ranks: Ranks, peer: NodeAgent, tmp_path: Path) -> None:
    words = [f"cluster.num_workers={WORLD}", "cluster.workers_per_node=1", "train.steps=100000"]
    with SlowLine(peer.describe()["port"]) as line:
        ranks.agent.set_peer(SECRET, (ADDRESS, line.port))
        try:
            with ranks.start(open_run(ranks.data, tmp_path, *words)) as live:
                live.hear_until(lambda heard: len(copied_at(heard)) > COPIES)
                slot_bytes = peer.memory()["bytes"] / WORLD / COPIES_OF_RANK
                began = slow_down(live, line, WORLD * slot_bytes / SLOW)
                slow = copied_at(live.heard, began)
                # The first was on its way already; what is there stays while the next one comes.
                assert (slow[-1] - slow[0]) / COPIES >= 0.9 * SLOW
                held = peer.copied_steps()
                assert (newest_common_step([held[Share(WORLD, rank)] for rank in range(WORLD)]) or 0) > began
                line.allow(float("inf"))
                ended = max(live.heard.rows)

                def is_fast_again(heard: Heard) -> bool:
                    steps = copied_at(heard, ended)[-COPIES:]
                    return len(steps) == COPIES and steps[-1] - steps[0] < COPIES * SLOW / 4

                live.hear_until(is_fast_again)
                taken = [SnapshotCounts(*m["snapshots"]) for m in live.heard.by_kind["step"]]
                assert all(counts.taken == counts.due for counts in taken), "a slow network costs no snapshot"
        finally:
            ranks.agent.set_peer(SECRET, None)
