"""Starting an attempt: the resume point, the attempt's number, the ranks."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.checkpoint.commit import committed_steps, newest_valid
from orchestrator.checkpoint.fencing import Claim, new_claim, newest_attempt, refuse_if_fenced, take
from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.lineage import WHOLE, Lineage
from orchestrator.checkpoint.marker import Marker
from orchestrator.checkpoint.store import Store
from orchestrator.codec import encode
from orchestrator.control.disktier import DiskTier, OnReject
from orchestrator.control.domains import copy_holders
from orchestrator.control.initial import initial_point
from orchestrator.control.memorypoint import MemoryPoint, NodeMemory, newest_memory_point
from orchestrator.control.opening import OpenRun
from orchestrator.control.specs import common_spec, hang_limits, own_parts
from orchestrator.errors import FencedError, StoreError
from orchestrator.fleet.members import AgentHandle, Cluster, call
from orchestrator.plan import at_world_size
from orchestrator.spec import Placement, ResumePoint


def resume_point(
    run: OpenRun,
    store: Store,
    on_reject: Callable[[int, str], None],
    *,
    lineage: Lineage = WHOLE,
    max_step: int | None = None,
) -> ResumePoint:
    """The newest checkpoint (of `lineage`, up to `max_step`) of which every byte verifies; a damaged one is set aside
    and told to `on_reject`.

    Where the run has none, `checkpoint.init_from`. Raises CheckpointError where the store does not answer or holds
    another run's checkpoints.
    """
    marker = newest_valid(
        store, run.plan.fingerprint, on_reject, run.plan.identity, lineage=lineage, max_step=max_step
    )
    return initial_point(run.config.checkpoint, run.plan.model) if marker is None else _committed_point(store, marker)


@dataclass(frozen=True, slots=True)
class StoredPoint:
    resume: ResumePoint
    committed_step: int
    """Of the newest checkpoint at checkpoint.url; 0 where there is none."""


def stored_point(
    run: OpenRun,
    store: Store,
    disks: DiskTier | None,
    on_reject: OnReject,
    *,
    lineage: Lineage = WHOLE,
    max_step: int | None = None,
    known_committed: int | None = None,
) -> StoredPoint:
    """The newest point that verifies, on the nodes' own disks or at checkpoint.url; of equal ones that on the disks.

    What `lineage` has left behind, or lies after `max_step`, is not looked at. A damaged one is set aside and told to
    `on_reject(step, reason, where)`. `known_committed` is the newest step at checkpoint.url if this driver has seen
    it: then the disks serve also while the store does not answer. Raises CheckpointError as `resume_point`.
    """

    def reject_stored(step: int, reason: str) -> None:
        on_reject(step, reason, store.where(step_folder(step)))

    fingerprint, identity = run.plan.fingerprint, run.plan.identity
    for point in disks.points() if disks is not None else ():
        if not lineage.survives(point.attempt, point.step) or (max_step is not None and point.step > max_step):
            continue
        how = {"lineage": lineage, "above": point.step, "max_step": max_step}
        try:
            newer = newest_valid(store, fingerprint, reject_stored, identity, **how)
            committed = max((s for s in committed_steps(store, lineage) if s <= point.step), default=0)
        except StoreError:
            if known_committed is None or known_committed > point.step:
                raise
            newer, committed = None, known_committed
        if newer is not None:
            return StoredPoint(_committed_point(store, newer), newer.step)
        resume = disks.restorable(point, fingerprint, on_reject)
        if resume is not None:
            return StoredPoint(replace(resume, is_durable=committed == resume.step), committed)
    resume = resume_point(run, store, reject_stored, lineage=lineage, max_step=max_step)
    has_own = resume.checkpoint is not None and not resume.is_initial
    return StoredPoint(resume, resume.step if has_own else 0)


def _committed_point(store: Store, marker: Marker) -> ResumePoint:
    return ResumePoint(
        step=marker.step,
        source="disk" if store.is_local else "remote",
        checkpoint=store.url_of(step_folder(marker.step)),
        skipped_windows=marker.data.skipped_windows,
        branch=marker.branch,
    )


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


def next_claim(
    first: Claim | None, previous: Claim | None, run: OpenRun, store: Store, newest_on_disks: int
) -> Claim:
    """`first`, taken before there were agents, where their disks know of no later attempt; else a new one after
    `previous`, this driver's last. Raises FencedError."""
    if first is not None and first.attempt > newest_on_disks:
        return first
    return claim_attempt(run, store, newest_on_disks, previous)


def claim_attempt(run: OpenRun, store: Store, newest_on_disks: int = 0, previous: Claim | None = None) -> Claim:
    """The next attempt's number, taken by exclusive create in the run folder and in the checkpoint store: no two
    drivers ever have the same, and older ones commit nothing from here on.

    `previous` is this driver's own last claim: FencedError where another driver has taken the run over since.
    Where the store does not answer, it is claimed by the attempt's first commit: a restart from memory goes on.
    """
    taken = [int(path.name.removeprefix("attempt_")) for path in run.folder.path.glob("attempt_[0-9]*")]
    if previous is not None:
        with contextlib.suppress(StoreError):
            refuse_if_fenced(store, previous.attempt, previous)
        newest = max(taken, default=0)
        if newest > previous.attempt:  # the store may be silent, but the run folder is not
            raise FencedError(
                f"attempt {previous.attempt} may not be restarted: attempt {newest} in {run.folder.path} is another "
                "driver's, which has taken the run over; nothing was damaged, and the run goes on there"
            )
    number = max(newest_on_disks, *taken, 0) + 1
    with contextlib.suppress(StoreError):
        number = max(number, newest_attempt(store) + 1)
    while True:
        claim = new_claim(number, run.plan.run_id)
        number += 1
        try:
            run.folder.attempt(claim.attempt).mkdir()
            if take(store, claim):
                return claim
        except FileExistsError:
            continue
        except StoreError:
            return claim


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
