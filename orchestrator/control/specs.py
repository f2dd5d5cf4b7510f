"""One WorkerSpec per rank from the plan, the placement and the resume point. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.agent.watchdog import HangLimits
from orchestrator.config import FaultConfig, RunConfig, WorkerStart
from orchestrator.control.lifecycle import Budget
from orchestrator.data.manifest import Manifest
from orchestrator.spec import Placement, ResumePoint, RunPlan, WorkerSpec

COPIES_OF_RANK = 2
"""What a peer holds of each rank of another node: the newest copy that is whole, and the one that is arriving."""


def common_spec(
    config: RunConfig,
    plan: RunPlan,
    manifest: Manifest,
    placement: Placement,
    *,
    attempt: int,
    resume: ResumePoint,
    checkpoint_url: str,
    store_host: str,
    store_port: int,
    interfaces: Mapping[int, str | None],
    peer_secret: str = "",
) -> WorkerSpec:
    """Rank 0's; `own_parts` has what the others differ in. `interfaces`: the network interface of each node that has
    ranks."""
    num_nodes, place = len(placement.nodes), placement.ranks[0]
    return WorkerSpec(
        run_id=plan.run_id,
        fingerprint=plan.fingerprint,
        attempt=attempt,
        rank=place.rank,
        world_size=len(placement.ranks),
        local_rank=place.local_rank,
        local_size=placement.bundles[place.node].workers,
        node=place.node,
        device=plan.device,
        threads=worker_threads(config),
        seed=config.run.seed,
        steps=plan.steps,
        schedule_steps=plan.schedule_steps,
        model=plan.model,
        optim=config.optim,
        train=config.train,
        data=config.data,
        manifest=manifest,
        snapshot=config.snapshot,
        checkpoint=config.checkpoint,
        checkpoint_url=checkpoint_url,
        disk_folder=disk_folder(config, plan.run_id),
        peer_secret=peer_secret,
        num_slots=num_slots(config, num_nodes),
        num_busy_slots=busy_slots(config, num_nodes),
        has_peer=has_peers(config, num_nodes),
        batch=plan.batch,
        zero_stage=plan.zero_stage,
        activation_checkpointing=config.parallel.activation_checkpointing,
        ds_config=plan.ds_config,
        resume=resume,
        store_host=store_host,
        store_port=store_port,
        network_interface=interfaces[place.node],
        fault=config.fault,
    )


def own_parts(placement: Placement, interfaces: Mapping[int, str | None]) -> list[dict[str, Any]]:
    """What differs from rank to rank, in rank order: `{**encode(common_spec), **own_part}` is an encoded WorkerSpec.
    The rest is made once, and sent to each node once: there may be a hundred thousand ranks."""
    sizes = [bundle.workers for bundle in placement.bundles]
    return [
        {
            "rank": place.rank,
            "local_rank": place.local_rank,
            "local_size": sizes[place.node],
            "node": place.node,
            "network_interface": interfaces[place.node],
        }
        for place in placement.ranks
    ]


def worker_specs(
    config: RunConfig,
    plan: RunPlan,
    manifest: Manifest,
    placement: Placement,
    *,
    interfaces: Mapping[int, str | None],
    **settings: Any,
) -> list[WorkerSpec]:
    """All of them, whole, in rank order; `settings` as of `common_spec`."""
    common = common_spec(config, plan, manifest, placement, interfaces=interfaces, **settings)
    return [replace(common, **part) for part in own_parts(placement, interfaces)]


def has_peers(config: RunConfig, num_nodes: int) -> bool:
    """Whether nodes hold copies of each other's snapshots."""
    return num_nodes > 1 and config.snapshot.every_steps > 0 and config.snapshot.replicate_every_steps > 0


def num_slots(config: RunConfig, num_nodes: int) -> int:
    """Snapshot slots of each rank."""
    return max(min_slots(config, num_nodes), config.snapshot.slots or 1 + busy_slots(config, num_nodes))


def min_slots(config: RunConfig, num_nodes: int) -> int:
    """With fewer slots of each rank no snapshot could be taken any more: the newest and the one being written, and
    with peers the newest that all of them hold."""
    return 2 + has_peers(config, num_nodes)


def busy_slots(config: RunConfig, num_nodes: int) -> int:
    """Slots of each rank that may be in use while training goes on: the newest, the one being written; with peers the
    one being copied and the newest that all peers hold; with a disk tier the one being written there."""
    return 2 + 2 * has_peers(config, num_nodes) + (config.checkpoint.local_dir is not None)


def disk_folder(config: RunConfig, run_id: str) -> str | None:
    """Of the run's checkpoints on each node's own disk."""
    local_dir = config.checkpoint.local_dir
    return None if local_dir is None else f"{local_dir.rstrip('/')}/{run_id}"


def agent_settings(config: RunConfig) -> dict[str, Any]:
    """How every agent is started."""
    return {"is_warm": config.worker.start is WorkerStart.fork, "threads": worker_threads(config)}


def full_budget(fault: FaultConfig) -> Budget:
    """The failures that a run may have without progress in between."""
    return Budget(
        restarts_left=fault.max_restarts,
        identical_limit=fault.max_identical_failures,
        rollbacks_left=fault.max_rollbacks,
    )


def worker_threads(config: RunConfig) -> int:
    """Intra-operation threads of one rank."""
    return config.worker.threads or config.cluster.cpus_per_worker


def hang_limits(config: RunConfig) -> HangLimits | None:
    """The watchdog's; None where it is turned off."""
    fault = config.fault
    if not fault.hang_timeout_factor:
        return None
    return HangLimits(
        factor=fault.hang_timeout_factor,
        constant_s=fault.hang_constant_s,
        unlearned_s=config.worker.start_timeout_s,
        storing_s=config.checkpoint.final_timeout_s,
    )
