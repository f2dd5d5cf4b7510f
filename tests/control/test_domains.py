from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import ClusterConfig
from orchestrator.control.domains import copy_holders, domain_of, domain_problems


def config(**fields) -> ClusterConfig:
    return ClusterConfig(name="c", **fields)


@pytest.mark.parametrize(
    ("domains", "holders"),
    [
        ([], []),
        ([None], [0]),
        ([None] * 4, [1, 2, 3, 0]),
        (["a"] * 3, [1, 2, 0]),
        (["a", "a", "b", "b"], [2, 3, 0, 1]),
        (["a", "b", "a", "b"], [1, 0, 3, 2]),
        (["a", "b", "c"], [1, 2, 0]),
        (["a", "a", "a", "b"], [3, 0, 1, 2]),  # two of four at most
        (["a", None], [1, 0]),
    ],
)
def test_who_holds_whose_copies(domains, holders):
    assert copy_holders(domains) == holders


@given(st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=2, max_size=40))
def test_copies_leave_their_domain_wherever_that_can_be(domains):
    holders, num_nodes = copy_holders(domains), len(domains)
    assert sorted(holders) == list(range(num_nodes)), "each node holds the copies of one"
    assert all(node != holder for node, holder in enumerate(holders))
    outside = sum(domains[node] != domains[holder] for node, holder in enumerate(holders))
    largest = max(Counter(domains).values())
    assert outside == min(num_nodes, 2 * (num_nodes - largest))


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=4, max_size=20))
def test_losing_a_whole_domain_leaves_a_copy_of_every_node_of_it(domains):
    if max(Counter(domains).values()) * 2 > len(domains):
        return
    for lost in set(domains):
        for node, holder in enumerate(copy_holders(domains)):
            assert domains[node] != lost or domains[holder] != lost


SLURM = {"SLURM_TOPOLOGY_ADDR": "core.leaf2.node7", "SLURM_TOPOLOGY_ADDR_PATTERN": "switch.switch.node"}


@pytest.mark.parametrize(
    ("fields", "labels", "environment", "domain"),
    [
        ({}, {}, {}, None),
        ({}, {}, SLURM, "core.leaf2"),
        ({}, {}, {"SLURM_TOPOLOGY_ADDR": "node7", "SLURM_TOPOLOGY_ADDR_PATTERN": "node"}, None),
        ({"failure_domain_label": "rack"}, {"rack": "r1"}, SLURM, "r1"),
        ({"failure_domain_label": "rack"}, {"zone": "z"}, SLURM, None),
        ({"failure_domains": {"left": ["node[1-5]"], "right": ["node6", "node7"]}}, {"rack": "r"}, SLURM, "right"),
        ({"failure_domains": {"left": ["other*"]}}, {}, SLURM, "core.leaf2"),
    ],
)
def test_where_a_node_s_domain_comes_from(fields, labels, environment, domain):
    assert domain_of("node7", labels, environment, config(**fields)) == domain


def test_people_hear_of_nodes_that_they_forgot_and_of_a_domain_that_is_too_large():
    named = config(failure_domains={"a": ["x"]})
    assert domain_problems(["n1", "n2"], [None, None], config()) == []
    assert domain_problems(["n1", "n2"], ["a", "b"], named) == []
    (problem,) = domain_problems(["n1", "n2"], ["a", None], named)
    assert problem.startswith("n2: no failure domain is known")
    (problem,) = domain_problems(["n1", "n2", "n3"], ["a", "a", "b"], named)
    assert problem.startswith("the copies of 1 of 3 nodes are in their own failure domain")
