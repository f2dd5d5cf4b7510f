"""place: ranks on nodes, and the numbers when they do not fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import ClusterConfig
from orchestrator.errors import EXIT_USAGE, PlacementError
from orchestrator.placement import may_go_on, place, planned_nodes, remaining
from orchestrator.spec import Bundle, NodeFacts, RankPlace

GPU_NODES = [NodeFacts(name="node-a", cpus=64, gpus=4), NodeFacts(name="node-b", cpus=64, gpus=2)]
THIS_HOST = [NodeFacts(name="this-host", cpus=2, gpus=0)]


def gpus(num_workers: int, nodes: list[NodeFacts], workers_per_node: int | None = None, cpus: int = 1):
    return place(
        num_workers=num_workers,
        workers_per_node=workers_per_node,
        cpus_per_worker=cpus,
        gpus_per_worker=1,
        nodes=nodes,
    )


def test_fills_nodes_in_order_with_contiguous_ranks():
    placement = gpus(5, GPU_NODES, cpus=8)
    assert placement.bundles == (Bundle(workers=4, cpus=32, gpus=4), Bundle(workers=1, cpus=8, gpus=1))
    assert placement.ranks[3:] == (
        RankPlace(rank=3, node=0, local_rank=3),
        RankPlace(rank=4, node=1, local_rank=0),
    )


def test_nodes_that_are_not_needed_or_hold_nothing_get_no_bundle():
    nodes = [NodeFacts(name="login", cpus=8, gpus=0), *GPU_NODES, NodeFacts(name="spare", cpus=64, gpus=8)]
    placement = gpus(6, nodes)
    assert [bundle.workers for bundle in placement.bundles] == [4, 2]
    assert {place.node for place in placement.ranks} == {0, 1}


def test_workers_per_node_caps_each_node():
    placement = gpus(4, GPU_NODES, workers_per_node=2)
    assert [bundle.workers for bundle in placement.bundles] == [2, 2]


@pytest.mark.parametrize(
    ("needs", "nodes", "message"),
    [
        (
            {"num_workers": 8, "gpus_per_worker": 1},
            GPU_NODES,
            "cluster.num_workers=8 needs 8 GPUs, the cluster has 6 (node-a: 4, node-b: 2); "
            "use cluster.num_workers=6 or fewer, or join a larger cluster with cluster.address=HOST:PORT",
        ),
        (
            {"num_workers": 64},
            THIS_HOST,
            "cluster.num_workers=64 needs 64 CPUs, the cluster has 2 (this-host: 2); "
            "use cluster.num_workers=2 or fewer, or join a larger cluster with cluster.address=HOST:PORT",
        ),
        (
            {"num_workers": 1, "gpus_per_worker": 1},
            THIS_HOST,
            "cluster.num_workers=1 needs 1 GPU, the cluster has 0 (this-host: 0); "
            "join a larger cluster with cluster.address=HOST:PORT",
        ),
        (
            {"num_workers": 3, "cpus_per_worker": 2},
            [NodeFacts(name="a", cpus=3, gpus=0), NodeFacts(name="b", cpus=3, gpus=0)],
            "cluster.num_workers=3 with 2 CPUs each does not fit, the cluster has room for 2 (a: 1, b: 1); "
            "use cluster.num_workers=2 or fewer, or join a larger cluster with cluster.address=HOST:PORT",
        ),
        (
            {"num_workers": 5, "gpus_per_worker": 1, "workers_per_node": 2},
            GPU_NODES,
            "cluster.num_workers=5 with 1 CPU and 1 GPU each and cluster.workers_per_node=2 does not fit, "
            "the cluster has room for 4 (node-a: 2, node-b: 2); "
            "use cluster.num_workers=4 or fewer, or join a larger cluster with cluster.address=HOST:PORT",
        ),
        (
            {"num_workers": 1},
            [],
            "cluster.num_workers=1 needs 1 CPU, the cluster has 0 (no nodes); "
            "join a larger cluster with cluster.address=HOST:PORT",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(needs, nodes, message):
    defaults = {"workers_per_node": None, "cpus_per_worker": 1, "gpus_per_worker": 0}
    with pytest.raises(PlacementError) as error:
        place(**(defaults | needs), nodes=nodes)
    assert str(error.value) == message
    assert error.value.exit_code == EXIT_USAGE


def test_too_few_gpus_and_too_few_cpus_are_both_named():
    with pytest.raises(PlacementError) as error:
        gpus(8, GPU_NODES, cpus=32)
    assert [problem.split(",")[0] for problem in error.value.problems] == [
        "cluster.num_workers=8 needs 8 GPUs",
        "cluster.num_workers=8 needs 256 CPUs",
    ]


def test_an_error_does_not_list_a_thousand_nodes():
    nodes = [NodeFacts(name=f"n{i}", cpus=1, gpus=0) for i in range(1000)]
    with pytest.raises(PlacementError, match=r"n7: 1 and 992 more\)"):
        place(num_workers=1001, workers_per_node=None, cpus_per_worker=1, gpus_per_worker=0, nodes=nodes)


nodes_strategy = st.lists(
    st.builds(NodeFacts, name=st.just("n"), cpus=st.integers(0, 20), gpus=st.integers(0, 8)), max_size=6
)


@given(
    num_workers=st.integers(1, 40),
    workers_per_node=st.none() | st.integers(1, 8),
    cpus_per_worker=st.integers(1, 4),
    gpus_per_worker=st.integers(0, 1),
    nodes=nodes_strategy,
)
def test_every_rank_has_one_place_and_no_node_gives_more_than_it_has(
    num_workers, workers_per_node, cpus_per_worker, gpus_per_worker, nodes
):
    try:
        placement = place(
            num_workers=num_workers,
            workers_per_node=workers_per_node,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            nodes=nodes,
        )
    except PlacementError:
        fits = [
            min(
                node.cpus // cpus_per_worker,
                node.gpus if gpus_per_worker else 10**6,
                workers_per_node or 10**6,
            )
            for node in nodes
        ]
        assert sum(fits) < num_workers
        return
    assert [place.rank for place in placement.ranks] == list(range(num_workers))
    expected = [(node, local) for node, bundle in enumerate(placement.bundles) for local in range(bundle.workers)]
    assert [(place.node, place.local_rank) for place in placement.ranks] == expected
    # Each bundle fits a node of its own, in the nodes' order.
    remaining = iter(nodes)
    for bundle in placement.bundles:
        assert any(node.cpus >= bundle.cpus and node.gpus >= bundle.gpus for node in remaining)


def test_planned_nodes_hold_the_workers_exactly():
    cluster = ClusterConfig(name="big", num_workers=1020, cpus_per_worker=8)
    nodes = planned_nodes(cluster, device="cuda")
    assert len(nodes) == 128
    placement = gpus(1020, nodes, cpus=8)
    assert [bundle.workers for bundle in placement.bundles] == [8] * 127 + [4]


def test_planned_nodes_on_a_cpu_have_no_gpus():
    cluster = ClusterConfig(name="small", num_workers=3, workers_per_node=2, cpus_per_worker=4)
    assert planned_nodes(cluster, device="cpu") == [
        NodeFacts(name="node-0", cpus=8, gpus=0),
        NodeFacts(name="node-1", cpus=8, gpus=0),
    ]


@given(
    rooms=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    data=st.data(),
)
def test_what_remains_has_contiguous_ranks_on_the_nodes_that_are_left(rooms, data):
    nodes = [NodeFacts(name=f"n{index}", cpus=room, gpus=0) for index, room in enumerate(rooms)]
    whole = place(num_workers=sum(rooms), workers_per_node=None, cpus_per_worker=1, gpus_per_worker=0, nodes=nodes)
    left = data.draw(st.sets(st.sampled_from(range(len(rooms)))))
    rest = remaining(whole, left)
    assert rest.bundles == whole.bundles
    assert rest.nodes == tuple(sorted(left))
    assert [place.rank for place in rest.ranks] == list(range(sum(rooms[node] for node in left)))
    for node in left:
        assert [place.local_rank for place in rest.ranks if place.node == node] == list(range(rooms[node]))
    assert remaining(whole, range(len(rooms))) == whole


@pytest.mark.parametrize(("least", "enough"), [(None, 6), (6, 6), (4, 4), (1, 1)])
def test_a_run_goes_on_with_min_workers_and_without_it_with_all(least, enough):
    cluster = ClusterConfig(name="x", num_workers=6, min_workers=least)
    whole = gpus(6, [NodeFacts(name=str(index), cpus=1, gpus=1) for index in range(6)])
    for left in range(7):
        assert may_go_on(cluster, remaining(whole, range(left))) == (left >= enough)
