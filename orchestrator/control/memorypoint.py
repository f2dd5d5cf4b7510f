"""Which step of the run the agents' memory still holds whole, and where each rank's part of it is. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.checkpoint.slots import Share, newest_common_step
from orchestrator.spec import Placement

Steps = Mapping[Share, Sequence[int]]
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """What one node's agent holds whole."""

    node: int
    address: Address
    """Where it gives snapshots to others."""
    own: Steps
    copies: Steps
    """Of other nodes' ranks."""


@dataclass(frozen=True, slots=True)
class MemoryPoint:
    """A step of which every rank's snapshot is in some agent's memory."""

    step: int
    world_size: int
    """Of the ranks that made the snapshots."""
    holders: dict[int, Address]
    """Rank of that world -> who has its snapshot, its own node before a peer."""
    is_from_peers: bool
    """Some of it is left in a peer's memory only."""
    to_fetch: dict[int, list[tuple[Share, int, Address]]]
    """Where the world size is the placement's: node -> (share, step, who has it) of what its own memory lacks."""


def newest_memory_point(
    memories: Sequence[NodeMemory], placement: Placement, max_step: int | None = None
) -> MemoryPoint | None:
    """The newest step (up to `max_step`) that is whole in memory, of whatever world size."""
    world_sizes = {share.world_size for memory in memories for share in (*memory.own, *memory.copies)}
    wanted = len(placement.ranks)
    steps = ((_newest_step(memories, size, max_step), size) for size in world_sizes)
    found = [(step, size) for step, size in steps if step is not None]
    if not found:
        return None
    step, world_size = max(found, key=lambda point: (point[0], point[1] == wanted))
    own, copies = _holders(memories, world_size, step)
    holders = {**copies, **own}
    to_fetch: dict[int, list[tuple[Share, int, Address]]] = {}
    if world_size == wanted:
        by_node = {memory.node: memory.own for memory in memories}
        for place in placement.ranks:
            share = Share(world_size, place.rank)
            if step not in by_node.get(place.node, {}).get(share, ()):
                to_fetch.setdefault(place.node, []).append((share, step, holders[place.rank]))
    return MemoryPoint(step, world_size, holders, len(own) < world_size, to_fetch)


def _newest_step(memories: Sequence[NodeMemory], world_size: int, max_step: int | None) -> int | None:
    of_ranks: list[list[int]] = [[] for _ in range(world_size)]
    for memory in memories:
        for share, steps in (*memory.own.items(), *memory.copies.items()):
            if share.world_size == world_size:
                of_ranks[share.rank] += [step for step in steps if max_step is None or step <= max_step]
    return newest_common_step(of_ranks)


def _holders(
    memories: Sequence[NodeMemory], world_size: int, step: int
) -> tuple[dict[int, Address], dict[int, Address]]:
    """(rank -> where its own node has it, rank -> where a peer has it)."""
    own, copies = (
        {
            share.rank: memory.address
            for memory in memories
            for share, steps in (memory.own if is_own else memory.copies).items()
            if share.world_size == world_size and step in steps
        }
        for is_own in (True, False)
    )
    return own, copies
