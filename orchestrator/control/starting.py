"""Starting an attempt: the resume point, the attempt's number, the ranks."""

from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.checkpoint.commit import newest_valid
from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.slots import newest_common_step
from orchestrator.checkpoint.store import Store
from orchestrator.codec import encode
from orchestrator.control.cluster import AgentHandle, RayCluster
from orchestrator.control.opening import OpenRun
from orchestrator.control.specs import worker_specs
from orchestrator.spec import Placement, ResumePoint


def resume_point(run: OpenRun, store: Store, on_reject: Callable[[int, str], None]) -> ResumePoint:
    """The newest checkpoint of which every byte verifies; a damaged one is set aside and told to `on_reject`.

    Raises CheckpointError where the store does not answer or holds another run's checkpoints.
    """
    marker = newest_valid(store, run.plan.fingerprint, on_reject, run.plan.identity)
    if marker is None:
        return ResumePoint()
    return ResumePoint(
        step=marker.step,
        source="disk" if store.is_local else "remote",
        checkpoint=store.url_of(step_folder(marker.step)),
        skipped_windows=marker.data.skipped_windows,
    )


def memory_point(
    cluster: RayCluster, agents: Sequence[AgentHandle], world_size: int, previous: ResumePoint
) -> ResumePoint | None:
    """The newest step of which the agents hold every rank's snapshot; None where there is none."""
    held: dict[int, list[int]] = {}
    for steps_of_rank in cluster.call_all([(agent, ()) for agent in agents], "sealed_steps"):
        held |= steps_of_rank
    step = newest_common_step([held.get(rank, []) for rank in range(world_size)])
    if step is None:
        return None
    return ResumePoint(step=step, source="memory", skipped_windows=previous.skipped_windows)


def claim_attempt(run: OpenRun) -> int:
    """The next attempt's number, taken by exclusive create: no two drivers ever have the same."""
    taken = [int(path.name.removeprefix("attempt_")) for path in run.folder.path.glob("attempt_[0-9]*")]
    number = max(taken, default=0) + 1
    while True:
        try:
            run.folder.attempt(number).mkdir()
            return number
        except FileExistsError:
            number += 1


def start_ranks(
    run: OpenRun,
    cluster: RayCluster,
    agents: Sequence[AgentHandle],
    placement: Placement,
    *,
    number: int,
    resume: ResumePoint,
) -> None:
    """Fork every rank of attempt `number`. Raises ConnectionError where an agent is gone."""
    specs = worker_specs(
        run.config,
        run.plan,
        run.manifest,
        placement,
        attempt=number,
        resume=resume,
        checkpoint_url=run.checkpoint_url,
        store_host=agents[0].address,
        store_port=cluster.call(agents[0], "start_store"),
        interfaces=[run.config.cluster.network_interface or agent.interface for agent in agents],
    )
    by_node: dict[int, list[tuple[int, dict[str, Any]]]] = {agent.node: [] for agent in agents}
    for spec in specs:
        by_node[spec.node].append((spec.rank, encode(spec)))
    cluster.call_all([(agent, (number, by_node[agent.node])) for agent in agents], "start_ranks")
