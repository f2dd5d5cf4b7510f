"""Which trials fit beside each other: gang scheduling as arithmetic. Plan half, pure.

A trial starts only when all its workers have room; Ray then reserves them together or not at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.config import RunConfig
from orchestrator.placement import place_workers, wanted_device
from orchestrator.spec import Bundle, NodeFacts


@dataclass(frozen=True, slots=True)
class Gang:
    """What a trial reserves: bundles, each on a node of its own."""

    bundles: tuple[Bundle, ...]


def gang_of(config: RunConfig, nodes: Sequence[NodeFacts]) -> Gang:
    """What `phalanx train` will reserve on these nodes. Raises PlacementError where it can never fit."""
    return Gang(place_workers(config.cluster, wanted_device(config.cluster, nodes), nodes).bundles)


def room_after(nodes: Sequence[NodeFacts], running: Sequence[Gang]) -> list[NodeFacts]:
    """What the nodes have left beside the running gangs; one that fits nowhere (the cluster shrank) is left out."""
    left = list(nodes)
    for gang in running:
        left = _without(left, gang) or left
    return left


def fits(left: Sequence[NodeFacts], gang: Gang) -> bool:
    return _without(left, gang) is not None


def concurrency(nodes: Sequence[NodeFacts], gang: Gang, limit: int | None) -> int:
    """How many such gangs run at a time."""
    left: list[NodeFacts] | None = list(nodes)
    count = 0
    while (limit is None or count < limit) and (left := _without(left or [], gang)) is not None:
        count += 1
    return count


def _without(nodes: Sequence[NodeFacts], gang: Gang) -> list[NodeFacts] | None:
    """The nodes with the gang on them, its largest bundle placed first; None where it does not fit."""
    left = list(nodes)
    taken: set[int] = set()
    for bundle in sorted(gang.bundles, key=lambda b: (b.gpus, b.cpus), reverse=True):
        place = next(
            (
                index
                for index, node in enumerate(left)
                if index not in taken and node.cpus >= bundle.cpus and node.gpus >= bundle.gpus
            ),
            None,
        )
        if place is None:
            return None
        node = left[place]
        left[place] = replace(node, cpus=node.cpus - bundle.cpus, gpus=node.gpus - bundle.gpus)
        taken.add(place)
    return left
