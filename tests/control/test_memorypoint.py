"""Which step is chosen of what the agents hold, and who is told to fetch what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.slots import Share
from orchestrator.control.memorypoint import MemoryPoint, NodeMemory, newest_memory_point
from orchestrator.placement import place, remaining
from orchestrator.spec import NodeFacts, Placement


def world(num_nodes: int, per_node: int = 1) -> Placement:
    nodes = [NodeFacts(name=str(index), cpus=per_node, gpus=0) for index in range(num_nodes)]
    return place(
        num_workers=num_nodes * per_node, workers_per_node=per_node, cpus_per_worker=1, gpus_per_worker=0, nodes=nodes
    )


def address(node: int) -> tuple[str, int]:
    return f"host-{node}", 1000 + node


def memory(node: int, own: dict[int, list[int]], copies: dict[int, list[int]], size: int = 3) -> NodeMemory:
    """rank -> steps, all of one world."""
    held = [{Share(size, rank): steps for rank, steps in steps_of.items()} for steps_of in (own, copies)]
    return NodeMemory(node, address(node), *held)


RING = [memory(0, {0: [4, 5]}, {2: [4]}), memory(1, {1: [4, 5]}, {0: [4]}), memory(2, {2: [4, 5]}, {1: [4]})]
"""Three ranks on as many nodes, all at step 5, the copies one step behind."""


def test_all_there():
    point = newest_memory_point(RING, world(3))
    assert point == MemoryPoint(5, 3, {rank: address(rank) for rank in range(3)}, False, {})


def test_a_node_that_was_replaced_fetches_from_the_peer():
    point = newest_memory_point([RING[0], RING[1], memory(2, {}, {})], world(3))
    assert point is not None
    assert (point.step, point.is_from_peers) == (4, True)
    assert point.to_fetch == {2: [(Share(3, 2), 4, address(0))]}


def test_a_node_that_was_not_replaced_leaves_its_share_with_the_peer():
    point = newest_memory_point(RING[:2], remaining(world(3), {0, 1}))
    assert point == MemoryPoint(4, 3, {0: address(0), 1: address(1), 2: address(0)}, True, {})


def test_growing_reads_what_the_smaller_world_holds():
    small = [memory(0, {0: [7]}, {}, size=2), memory(1, {1: [7]}, {}, size=2), memory(2, {}, {})]
    point = newest_memory_point(small, world(3))
    assert point == MemoryPoint(7, 2, {0: address(0), 1: address(1)}, False, {})


def test_neighbours_lost_together_leave_nothing():
    assert newest_memory_point([RING[2]], remaining(world(3), {2})) is None
    assert newest_memory_point([], world(1)) is None


def test_the_newer_world_counts_and_the_older_one_while_it_has_nothing_whole():
    """A second death before the new world's first snapshots: the former one's are still there."""
    before = [memory(0, {0: [4]}, {2: [4]}), memory(1, {1: [4]}, {})]

    def with_new(*steps: list[int]) -> list[NodeMemory]:
        return [NodeMemory(m.node, m.address, {**m.own, Share(2, m.node): steps[m.node]}, m.copies) for m in before]

    placement = remaining(world(3), {0, 1})
    for steps, expected in (([[5], []], (4, 3)), ([[5], [5]], (5, 2)), ([[4], [4]], (4, 2))):
        point = newest_memory_point(with_new(*steps), placement)
        assert point is not None
        assert (point.step, point.world_size) == expected


def test_a_rank_that_has_moved_fetches_from_where_it_was():
    memories = [memory(0, {0: [3]}, {}, size=2), memory(2, {1: [3]}, {}, size=2), memory(1, {}, {})]
    point = newest_memory_point(memories, remaining(world(3), {0, 1}))
    assert point is not None
    assert point.to_fetch == {1: [(Share(2, 1), 3, address(2))]}


@given(st.integers(1, 5), st.integers(1, 3), st.data())
def test_a_ring_of_copies_bears_the_loss_of_any_nodes_that_are_no_neighbours(num_nodes, per_node, data):
    size = num_nodes * per_node
    ranks = [range(node * per_node, (node + 1) * per_node) for node in range(num_nodes)]
    memories = [
        memory(
            node,
            {rank: [8] for rank in ranks[node]},
            {rank: [8] for rank in ranks[node - 1]} if num_nodes > 1 else {},
            size,
        )
        for node in range(num_nodes)
    ]
    lost = data.draw(st.sets(st.sampled_from(range(num_nodes)), max_size=num_nodes - 1))
    left = [m for m in memories if m.node not in lost]
    point = newest_memory_point(left, remaining(world(num_nodes, per_node), {m.node for m in left}))
    if any((node + 1) % num_nodes in lost for node in lost):
        assert point is None
        return
    assert point is not None
    assert (point.step, point.world_size, point.is_from_peers) == (8, size, bool(lost))
    assert sorted(point.holders) == list(range(size))


@pytest.mark.parametrize("held", [[[1, 2], [2, 3]], [[3, 2], [2]]])
def test_the_newest_step_that_all_have(held):
    memories = [memory(node, {node: steps}, {}, size=2) for node, steps in enumerate(held)]
    point = newest_memory_point(memories, world(2))
    assert point is not None
    assert point.step == 2
    assert newest_memory_point(memories, world(2), max_step=1) is None
    assert newest_memory_point(memories, world(2), max_step=2) == point
