"""Which nodes are unfit: case by case, and who is paired with whom."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.doctor.finding import Finding, Level, NodeReport
from orchestrator.doctor.verdict import MAX_ROUNDS, NodeCheck, rate_words, rounds, unfit, warnings

HOSTS = ["v1", "v2", "v3", "v4"]
FINE, SLOW = 60e9, 20e9


def check(host: str, **fields: object) -> NodeCheck:
    return NodeCheck(host=host, flops_per_s=FINE, **fields)  # type: ignore[arg-type]


def clock(host: str, ahead_s: float) -> NodeReport:
    return NodeReport(host, 100.0 + ahead_s, (99.9, 100.1), ())


def judged(*checks: NodeCheck, hosts: list[str] | None = None, min_rate: float = 0.5) -> dict[str, str]:
    by_name = {each.host: each for each in checks}
    return unfit(hosts or list(by_name), by_name, {"v9": "python: not found"}, min_rate)


@given(st.integers(1, 40))
def test_nobody_is_paired_twice_in_a_round_or_with_the_same_one_again(count: int) -> None:
    hosts = [f"v{number}" for number in range(count)]
    found = rounds(hosts)
    pairs = [pair for each in found for pair in each]
    assert len(set(pairs)) == len(pairs)
    assert all(hosts.index(a) < hosts.index(b) for a, b in pairs)
    for each in found:
        in_round = [*itertools.chain(*each)]
        assert len(set(in_round)) == len(in_round) >= count - 1
    partners = {host: sum(host in pair for pair in pairs) for host in hosts}
    assert all(partners[host] >= min(MAX_ROUNDS, count) - 1 for host in hosts)


def test_three_nodes_are_paired_each_with_each() -> None:
    assert rounds(["a", "b", "c"]) == [[("a", "b")], [("a", "c")], [("b", "c")]]
    assert rounds(["a", "b"]) == [[("a", "b")]]
    assert rounds(["a"]) == []


def test_a_node_that_fails_by_itself_or_says_nothing() -> None:
    full = Finding("disk of /x", Level.fail, "no space", "empty it")
    slow = Finding("memory", Level.warn, "little", "get more")
    found = judged(check("v1", findings=[slow]), check("v2", findings=[full, slow]), hosts=["v1", "v2", "v3", "v9"])
    assert found == {"v2": "disk of /x: no space", "v3": "has not answered", "v9": "python: not found"}


def test_a_slow_node_is_one_far_below_the_median_of_the_others() -> None:
    slow = NodeCheck(host="v3", flops_per_s=SLOW)
    (words,) = judged(check("v1"), check("v2"), slow).values()
    assert words == "a matrix product at 20 GFLOP/s, where the others have 60 GFLOP/s"
    assert judged(check("v1"), check("v2"), slow, min_rate=0.3) == {}
    assert set(judged(check("v1"), slow)) == {"v3"}
    assert judged(slow) == {}
    others = [NodeCheck(host=f"v{number}", flops_per_s=SLOW) for number in (1, 2)]
    assert judged(*others, check("v3")) == {}


def test_who_is_slow_with_every_other_node_is_slow_itself() -> None:
    found = judged(
        check("v1", pairs={"v2": 5e6, "v3": 500e6}),
        check("v2", pairs={"v1": 5e6, "v3": 6e6}),
        check("v3", pairs={"v1": 480e6, "v2": 6e6}),
    )
    assert found == {"v2": "an all-reduce at 5.72 MiB/s, where the others have 467 MiB/s"}


def test_who_can_be_joined_with_nobody() -> None:
    found = judged(
        check("v1", pairs={"v2": 0.0, "v3": 500e6}, pair_errors=["timed out"]),
        check("v2", pairs={"v1": 0.0, "v3": 0.0}, pair_errors=["timed out", "the sum is wrong"]),
        check("v3", pairs={"v1": 480e6, "v2": 0.0}),
    )
    assert found == {"v2": "no all-reduce with v1 or v3: the sum is wrong"}


def test_of_two_that_can_not_be_joined_the_first_stays() -> None:
    found = judged(check("v1", pairs={"v2": 0.0}), check("v2", pairs={"v1": 0.0}))
    assert found == {"v2": "no all-reduce with v1: it did not end"}


@pytest.mark.parametrize(
    ("ahead_s", "found"),
    [
        ([0.0, 0.5, 0.2], {}),
        ([0.0, 5.0, 0.0], {}),
        ([0.0, 100.0, 0.0], {"v2": "its clock is 99.9 s off the others'"}),
        ([100.0, 0.0, 0.0], {"v1": "its clock is 99.9 s off the others'"}),
        ([3600.0, 3600.1, 3600.0], {}),
        ([0.0, 100.0], {"v2": "its clock is 99.9 s off the others'"}),
    ],
)
def test_clocks_are_compared_with_each_other(ahead_s: list[float], found: dict[str, str]) -> None:
    """Also where the asker's own is the wrong one."""
    assert judged(*(check(host, clock=clock(host, ahead)) for host, ahead in zip(HOSTS, ahead_s, strict=False))) == (
        found
    )


def test_a_gpu_on_two_nodes_is_a_fault_of_both() -> None:
    found = judged(check("v1", gpus=("GPU-a",)), check("v2", gpus=("GPU-b", "GPU-a")), check("v3", gpus=("GPU-c",)))
    assert found == dict.fromkeys(("v1", "v2"), "GPU-a is on another node, too")


def test_what_is_told_of_all() -> None:
    warm = Finding("GPU health", Level.warn, "GPU-a is warm", "cool it")
    checks = [check("v1", pairs={"v2": 2.0**29}), check("v2", findings=[warm], pairs={"v1": 2.0**30})]
    assert rate_words(checks) == "matrix product 60 GFLOP/s, all-reduce 512 MiB/s to 1.00 GiB/s"
    assert rate_words([NodeCheck(host="v1", flops_per_s=612e12)]) == "matrix product 612 TFLOP/s"
    assert rate_words([]) == ""
    assert warnings(checks) == ["GPU health: GPU-a is warm (v2)"]
