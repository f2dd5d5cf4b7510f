"""What the agents are asked so that an attempt can start: their peers, what their memory holds, their ranks."""

from collections.abc import Sequence
from typing import Any

from orchestrator.codec import encode
from orchestrator.control.domains import copy_holders
from orchestrator.control.memorypoint import MemoryPoint, NodeMemory, newest_memory_point
from orchestrator.control.opening import OpenRun
from orchestrator.control.specs import common_spec, hang_limits, own_parts
from orchestrator.fleet.members import AgentHandle, Cluster, call
from orchestrator.plan import at_world_size
from orchestrator.spec import Placement, ResumePoint


def memory_point(
    cluster: Cluster, agents: Sequence[AgentHandle], placement: Placement, max_step: int | None = None
) -> MemoryPoint | None:
    """The newest step (up to `max_step`) that the agents' memory holds for every rank of whatever world."""
    calls: list[tuple[AgentHandle, tuple[object, ...]]] = [(agent, ()) for agent in agents]
    own = cluster.call_all(calls, "sealed_steps")
    copied = cluster.call_all(calls, "copied_steps")
    memories = [
        NodeMemory(agent.node, (agent.address, agent.port), *steps)
        for agent, *steps in zip(agents, own, copied, strict=True)
    ]
    return newest_memory_point(memories, placement, max_step)


def set_peers(cluster: Cluster, agents: Sequence[AgentHandle], secret: str) -> None:
    """Each node's snapshots are copied to another one, in another failure domain where that can be."""
    holders = [agents[holder] for holder in copy_holders([agent.domain for agent in agents])]
    peers = [(agent.address, agent.port) for agent in holders]
    cluster.call_all([(agent, (secret, peer)) for agent, peer in zip(agents, peers, strict=True)], "set_peer")


def cuda_fork_problems(cluster: Cluster, agents: Sequence[AgentHandle]) -> list[str]:
    """A warning for each node where a forked process can't use CUDA; its ranks import for themselves then."""
    problems = cluster.call_all([(agent, ()) for agent in agents], "check_cuda_fork")
    return [
        f"SLOW START on {agent.host}: a forked process can't use CUDA ({problem}); ranks import for themselves as "
        "with worker.start=spawn"
        for agent, problem in zip(agents, problems, strict=True)
        if problem is not None
    ]


def start_ranks(
    run: OpenRun,
    cluster: Cluster,
    agents: Sequence[AgentHandle],
    placement: Placement,
    *,
    number: int,
    resume: ResumePoint,
    secret: str = "",
    standby: int | None = None,
) -> None:
    """Start every rank of attempt `number`; with those that stand by since attempt `standby`, if not None.

    Raises ConnectionError where an agent is gone.
    """
    limits = hang_limits(run.config)
    specs = _specs_by_node(run, cluster, agents, placement, number=number, resume=resume, secret=secret)
    calls = [(agent, (number, common, own, limits, standby)) for agent, common, own in specs]
    cluster.call_all(calls, "start_ranks")


def prepare_standbys(
    run: OpenRun, cluster: Cluster, agents: Sequence[AgentHandle], placement: Placement, number: int
) -> None:
    """During attempt `number`: fork a standby for every rank. What they resume from they are told with their attempt.

    Raises ConnectionError where an agent is gone.
    """
    later = ResumePoint(source="memory", world_size=len(placement.ranks))
    specs = _specs_by_node(run, cluster, agents, placement, number=number, resume=later, secret="")
    cluster.call_all([(agent, (number, common, own)) for agent, common, own in specs], "prepare_standbys")


def _specs_by_node(
    run: OpenRun,
    cluster: Cluster,
    agents: Sequence[AgentHandle],
    placement: Placement,
    *,
    number: int,
    resume: ResumePoint,
    secret: str,
) -> list[tuple[AgentHandle, dict[str, Any], list[dict[str, Any]]]]:
    """(agent, what its ranks' encoded specs have in common, what each has of its own)."""
    interfaces = {a.node: run.config.cluster.network_interface or a.interface for a in agents}
    common = common_spec(
        run.config,
        at_world_size(run.config, run.plan, len(placement.ranks)),
        run.manifest,
        placement,
        attempt=number,
        resume=resume,
        checkpoint_url=run.checkpoint_url,
        store_host=agents[0].address,
        store_port=call(cluster, agents[0], "start_store"),
        interfaces=interfaces,
        peer_secret=secret,
    )
    encoded = encode(common)
    by_node: dict[int, list[dict[str, Any]]] = {agent.node: [] for agent in agents}
    for part in own_parts(placement, interfaces):
        by_node[part["node"]].append(part)
    return [(agent, encoded, by_node[agent.node]) for agent in agents]
