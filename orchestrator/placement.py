"""Which rank runs on which node. Plan half: nodes come in as facts, reservations go out as values."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from orchestrator.config import ClusterConfig, Device
from orchestrator.errors import PlacementError
from orchestrator.spec import Bundle, NodeFacts, Placement, RankPlace

DEFAULT_WORKERS_PER_NODE = 8
"""Accelerators in the usual training node; what `phalanx plan` assumes where nothing is said."""
NODES_NAMED = 8
"""An error names so many nodes and counts the rest."""


def wanted_device(config: ClusterConfig, nodes: Sequence[NodeFacts]) -> str:
    """`cpu` or `cuda`: what the config asks for, or what the nodes have."""
    if config.device is not Device.auto:
        return config.device.value
    return "cuda" if any(node.gpus for node in nodes) else "cpu"


def place(
    *,
    num_workers: int,
    workers_per_node: int | None,
    cpus_per_worker: int,
    gpus_per_worker: int,
    nodes: Sequence[NodeFacts],
) -> Placement:
    """Fill the nodes in the given order: one bundle for each node used, ranks contiguous on a node.

    6 workers on nodes with room for 4 and 4: ranks 0 to 3 on the first, 4 and 5 on the second. Raises
    PlacementError with what is needed, what each node has and how many workers would fit.
    """
    rooms = [_room(node, workers_per_node, cpus_per_worker, gpus_per_worker) for node in nodes]
    if sum(rooms) < num_workers:
        raise PlacementError(
            *_shortages(
                num_workers,
                workers_per_node=workers_per_node,
                cpus_per_worker=cpus_per_worker,
                gpus_per_worker=gpus_per_worker,
                nodes=nodes,
                rooms=rooms,
            )
        )
    bundles: list[Bundle] = []
    ranks: list[RankPlace] = []
    for room in rooms:
        workers = min(room, num_workers - len(ranks))
        if workers == 0:
            continue
        first = len(ranks)
        ranks += [RankPlace(rank=first + local, node=len(bundles), local_rank=local) for local in range(workers)]
        bundles.append(Bundle(workers=workers, cpus=workers * cpus_per_worker, gpus=workers * gpus_per_worker))
    return Placement(bundles=tuple(bundles), ranks=tuple(ranks))


def place_workers(cluster: ClusterConfig, device: str, nodes: Sequence[NodeFacts]) -> Placement:
    """`place` with the numbers of the config; one GPU for each worker on `cuda`."""
    return place(
        num_workers=cluster.num_workers,
        workers_per_node=cluster.workers_per_node,
        cpus_per_worker=cluster.cpus_per_worker,
        gpus_per_worker=int(device == "cuda"),
        nodes=nodes,
    )


def remaining(placement: Placement, nodes: Collection[int]) -> Placement:
    """What is left where only `nodes` are: ranks are numbered anew, nodes keep their numbers.

    4 workers on 2 nodes, node 0 lost: ranks 0 and 1 on node 1.
    """
    kept = [place for place in placement.ranks if place.node in nodes]
    return Placement(
        bundles=placement.bundles,
        ranks=tuple(replace(place, rank=rank) for rank, place in enumerate(kept)),
    )


def may_go_on(cluster: ClusterConfig, placement: Placement) -> bool:
    """Whether so many workers are enough."""
    least = cluster.num_workers if cluster.min_workers is None else cluster.min_workers
    return len(placement.ranks) >= least


def planned_nodes(cluster: ClusterConfig, *, device: str) -> list[NodeFacts]:
    """Just enough imaginary nodes for the workers, so that a thousand GPUs can be planned on a laptop."""
    per_node = cluster.workers_per_node or DEFAULT_WORKERS_PER_NODE
    num_nodes = -(-cluster.num_workers // per_node)
    return [
        NodeFacts(
            name=f"node-{index}",
            cpus=per_node * cluster.cpus_per_worker,
            gpus=per_node if device == "cuda" else 0,
        )
        for index in range(num_nodes)
    ]


def planned_placement(cluster: ClusterConfig, device: str) -> Placement:
    """On `planned_nodes`: where the workers would be, before there is a cluster."""
    return place_workers(cluster, device, planned_nodes(cluster, device=device))


def _room(node: NodeFacts, workers_per_node: int | None, cpus_per_worker: int, gpus_per_worker: int) -> int:
    room = node.cpus // cpus_per_worker
    if gpus_per_worker:
        room = min(room, node.gpus // gpus_per_worker)
    return room if workers_per_node is None else min(room, workers_per_node)


def _shortages(
    num_workers: int,
    *,
    workers_per_node: int | None,
    cpus_per_worker: int,
    gpus_per_worker: int,
    nodes: Sequence[NodeFacts],
    rooms: Sequence[int],
) -> list[str]:
    way_out = _way_out(sum(rooms))
    problems = []
    for unit, per_worker, has in (
        ("GPU", gpus_per_worker, [node.gpus for node in nodes]),
        ("CPU", cpus_per_worker, [node.cpus for node in nodes]),
    ):
        needed = num_workers * per_worker
        if sum(has) < needed:
            problems.append(
                f"cluster.num_workers={num_workers} needs {_count(needed, unit)}, "
                f"the cluster has {sum(has)} ({_by_node(nodes, has)}); {way_out}"
            )
    if problems:
        return problems
    # Enough in total, but a worker can't be split over nodes, or the person capped workers per node.
    each = [_count(cpus_per_worker, "CPU")] + [_count(gpus_per_worker, "GPU")] * bool(gpus_per_worker)
    cap = f" and cluster.workers_per_node={workers_per_node}" if workers_per_node is not None else ""
    return [
        f"cluster.num_workers={num_workers} with {' and '.join(each)} each{cap} does not fit, "
        f"the cluster has room for {sum(rooms)} ({_by_node(nodes, rooms)}); {way_out}"
    ]


def _way_out(room: int) -> str:
    join = "join a larger cluster with cluster.address=HOST:PORT"
    return f"use cluster.num_workers={room} or fewer, or {join}" if room else join


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}" + ("" if number == 1 else "s")


def _by_node(nodes: Sequence[NodeFacts], numbers: Sequence[int]) -> str:
    named = [f"{node.name}: {number}" for node, number in zip(nodes, numbers, strict=True)]
    more = len(named) - NODES_NAMED
    shown = ", ".join(named[:NODES_NAMED]) or "no nodes"
    return f"{shown} and {more} more" if more > 0 else shown
