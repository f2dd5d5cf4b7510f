"""The driver of one run: refuses what can't be, opens the run and the cluster, hands over to the session."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.agent.zygotehandle import ZygoteAhead
from orchestrator.config import Offload, RunConfig, WorkerStart
from orchestrator.control.badnodes import avoided
from orchestrator.control.initial import check_start
from orchestrator.control.notices import Notices
from orchestrator.control.opening import (
    check_places,
    check_store,
    checkpoint_url,
    find_folder,
    is_finished,
    locked,
    open_run,
    plan_for,
    read_data,
)
from orchestrator.control.session import Session, Typed
from orchestrator.control.snapshotmemory import fitting_snapshots, has_standbys, process_bytes
from orchestrator.control.specs import worker_threads
from orchestrator.errors import ConfigError
from orchestrator.fleet.cluster import RayCluster
from orchestrator.fleet.surroundings import here, is_joining
from orchestrator.observe.eyes import check_eyes
from orchestrator.placement import place_workers, wanted_device
from orchestrator.spec import NodeFacts


def drive(config: RunConfig, typed: Typed) -> int:
    """Run, or go on with a run, to its end; returns the exit code.

    Raises ConfigError (nothing was started) with every problem that can be known before the cluster is asked,
    PlacementError where the cluster is too small.
    """
    started_s = time.time()
    if config.parallel.offload is Offload.nvme:
        raise ConfigError(
            "parallel.offload=nvme can be planned but not trained yet: partitions on a disk can't be snapshotted; "
            "use parallel.offload=params, which keeps them in CPU memory"
        )
    check_places(config)
    check_eyes(config.tracking)
    manifest = read_data(config)
    folder = find_folder(config, manifest)
    min_cpus = config.cluster.num_workers * config.cluster.cpus_per_worker
    local = [here(min_cpus)]
    device = wanted_device(config.cluster, local)
    plan = plan_for(config, manifest, folder, device)
    if is_finished(folder, plan):
        print(f"run {plan.run_id} has already done its {plan.steps} steps; next: phalanx generate {folder.quoted}")
        return 0
    check_store(config, plan, folder)
    check_start(config.checkpoint, plan.model, checkpoint_url(config, folder))
    if not is_joining(config.cluster):
        place_workers(config.cluster, device, local)

    def start_zygote(folder: Path) -> ZygoteAhead:
        is_warm = config.worker.start is WorkerStart.fork
        return ZygoteAhead(folder, worker_threads(config), device, is_warm=is_warm)

    def open_cluster() -> RayCluster:
        print(f"{plan.run_id}: {'joining' if is_joining(config.cluster) else 'starting'} Ray", flush=True)
        return RayCluster(config.cluster, min_cpus, start_zygote)

    with locked(folder), Notices() as notices, open_cluster() as cluster:
        notices.listen()
        bad = avoided(folder)
        nodes = sorted(cluster.nodes(), key=lambda node: node.name in bad)  # where others have room, not these
        device = wanted_device(config.cluster, nodes)
        placement = place_workers(config.cluster, device, nodes)
        plan = plan_for(config, manifest, folder, device)
        memory_bytes = node_memory_bytes(config, nodes)
        snapshots = fitting_snapshots(config, plan, placement, memory_bytes)
        standby = has_standbys(config, plan, snapshots.memory, memory_bytes)
        worker = replace(config.worker, standby=standby)
        config = replace(config, snapshot=snapshots.config, worker=worker)
        plan = replace(plan, process_bytes=process_bytes(plan, snapshots.memory))
        run = open_run(config, manifest, plan, typed.overrides, typed.config_yaml, recipe_yaml=typed.recipe_yaml)
        return Session(run, cluster, placement, snapshots, typed, started_s=started_s).run(notices)


def node_memory_bytes(config: RunConfig, nodes: Sequence[NodeFacts]) -> int | None:
    """What a node has for ranks and snapshots: as configured, else what the smallest says; None: not known."""
    if config.cluster.memory_bytes_per_node is not None:
        return config.cluster.memory_bytes_per_node
    return min((node.memory_bytes for node in nodes if node.memory_bytes is not None), default=None)
