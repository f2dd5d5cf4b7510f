"""Gangs on nodes: all workers of a trial have room, or it waits."""

import pytest

from launch.compose import compose
from orchestrator.errors import PlacementError
from orchestrator.spec import NodeFacts
from orchestrator.sweep.packing import concurrency, fits, gang_of, room_after

TWO_NODES = [NodeFacts(name="a", cpus=4, gpus=0), NodeFacts(name="b", cpus=4, gpus=0)]


def gang(workers: int, nodes: list[NodeFacts] = TWO_NODES, *words: str):
    return gang_of(compose([f"cluster.num_workers={workers}", "cluster.device=cpu", *words]).config, nodes)


@pytest.mark.parametrize(("workers", "at_a_time"), [(1, 8), (2, 4), (3, 2), (4, 2), (5, 1), (8, 1)])
def test_how_many_run_at_a_time(workers: int, at_a_time: int) -> None:
    assert concurrency(TWO_NODES, gang(workers), None) == at_a_time
    assert concurrency(TWO_NODES, gang(workers), 1) == 1


def test_a_gang_is_never_split_to_fit() -> None:
    left = room_after(TWO_NODES, [gang(3), gang(3)])
    assert [node.cpus for node in left] == [1, 1]
    assert not fits(left, gang(2))
    assert fits(left, gang(1))


def test_a_gang_over_two_nodes_needs_room_on_both() -> None:
    assert [bundle.workers for bundle in gang(8).bundles] == [4, 4]
    assert not fits(room_after(TWO_NODES, [gang(1)]), gang(8))


def test_gpus_are_counted() -> None:
    nodes = [NodeFacts(name="a", cpus=64, gpus=8)]
    config = compose(["cluster.num_workers=4", "cluster.device=cuda"]).config
    assert concurrency(nodes, gang_of(config, nodes), None) == 2


def test_a_trial_that_can_never_fit_is_refused() -> None:
    with pytest.raises(PlacementError, match=r"cluster\.num_workers=9 needs 9 CPUs, the cluster has 8"):
        gang(9)


def test_a_cluster_that_shrank_under_running_trials_has_no_room() -> None:
    smaller = TWO_NODES[:1]
    assert not fits(room_after(smaller, [gang(4), gang(4)]), gang(1, smaller))
