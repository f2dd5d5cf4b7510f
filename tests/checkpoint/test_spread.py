from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.spread import HeldStep, reachable_steps


def held(step: int, *files: int, attempt: int = 1, marker: str = "m", num_files: int = 3) -> HeldStep:
    return HeldStep(step, attempt, marker, num_files, files)


def test_a_step_counts_only_where_every_file_is_on_some_disk():
    nodes = [[held(10, 0, 1), held(20, 0, 1)], [held(10, 2), held(20)]]
    (found,) = reachable_steps(nodes)
    assert (found.step, found.holders) == (10, {0: (0, 1), 1: (2,)})


def test_a_file_that_two_nodes_have_is_read_from_the_first():
    (found,) = reachable_steps([[held(10)], [held(10, 0, 1, 2)], [held(10, 1, 2)]])
    assert (found.witness, found.holders) == (0, {1: (0, 1, 2)})


def test_two_attempts_that_committed_a_step_are_not_mixed():
    nodes = [[held(10, 0, 1, marker="a")], [held(10, 2, marker="b", attempt=2)]]
    assert reachable_steps(nodes) == []
    nodes[0].append(held(10, 0, 1, marker="b", attempt=2))
    (found,) = reachable_steps(nodes)
    assert (found.attempt, found.marker) == (2, "b")


def test_the_newest_step_comes_first_then_the_newest_attempt():
    nodes = [[held(10, 0, 1, 2), held(30, 0, 1, 2), held(30, 0, 1, 2, attempt=4, marker="x"), held(20, 0, 1, 2)]]
    assert [(item.step, item.attempt) for item in reachable_steps(nodes)] == [(30, 4), (30, 1), (20, 1), (10, 1)]


def test_nothing_is_reachable_where_there_is_nothing():
    assert reachable_steps([]) == reachable_steps([[], []]) == []
    assert reachable_steps([[held(10, num_files=0)]]) == []


FILES = st.sets(st.integers(0, 5))


@given(st.lists(st.dictionaries(st.sampled_from([10, 20, 30]), FILES, max_size=3), max_size=5))
def test_each_file_of_a_reachable_step_is_read_once_from_a_node_that_has_it(nodes):
    found = reachable_steps([[held(s, *sorted(files), num_files=6) for s, files in node.items()] for node in nodes])
    complete = {s for s in (10, 20, 30) if set().union(*(node.get(s, set()) for node in nodes)) == set(range(6))}
    assert [item.step for item in found] == sorted(complete, reverse=True)
    for item in found:
        assert sorted(file for files in item.holders.values() for file in files) == list(range(6))
        assert all(set(files) <= nodes[node][item.step] for node, files in item.holders.items())
