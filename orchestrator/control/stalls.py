"""A node says that its ranks stand still: what all nodes know, who is to blame, and every rank's stacks."""

from collections.abc import Sequence
from typing import Any

from orchestrator.agent.watchdog import RankProgress, judge
from orchestrator.control.attempt import Attempt
from orchestrator.fleet.members import AgentHandle, Cluster, host_of

ANSWER_S = 10.0
"""A node that does not answer in this time is judged by the others."""
DUMP_S = 30.0


def examine(cluster: Cluster, agents: Sequence[AgentHandle], attempt: Attempt, now_s: float) -> dict[str, Any] | None:
    """Note the hang in `attempt` and return what `hang_detected` says of it, its ranks' stacks being in their logs.

    `now_s`: unix seconds. None where a rank that the others wait for may still move.
    """
    progress: list[RankProgress] = []
    for of_node in cluster.call_living(agents, "progress", timeout_s=ANSWER_S):
        progress += of_node
    hang = judge(progress)
    if hang is None:
        return None
    first = hang.first
    host = host_of(agents, first.node)
    stacks = dump_stacks(cluster, agents, f"rank {first.rank} on {host}: {hang.message()}")
    failure = attempt.add_hang(hang, host, now_s, stacks.get(first.rank, ()))
    return {
        "rank": failure.rank,
        "node": failure.node,
        "phase": first.position.phase.name,
        "seconds": round(first.still_s, 3),
        "message": failure.message,
    }


def dump_stacks(cluster: Cluster, agents: Sequence[AgentHandle], why: str) -> dict[int, list[str]]:
    """Every rank's stacks into its log; rank -> its innermost frames, empty where it could not be asked."""
    stacks: dict[int, list[str]] = {}
    for of_node in cluster.call_living(agents, "dump_stacks", why, timeout_s=DUMP_S):
        stacks |= of_node
    return stacks
