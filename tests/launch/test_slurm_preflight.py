"""The job's side of a preflight, answer by answer; what is written of bad nodes, and read again."""

from pathlib import Path
from typing import Any

from launch.job.checking import PATIENCE_S, STEP_TIMEOUT_S, Checking
from launch.job.ending import moves
from orchestrator.control.badnodes import add_bad_nodes, excluded, read_bad_nodes
from orchestrator.doctor.finding import Level
from orchestrator.doctor.verdict import unfit
from orchestrator.runfolder import RunFolder

HOSTS = ["v1", "v2", "v3"]


def checked(node: str) -> dict[str, Any]:
    return {"op": "checked", "node": node, "address": f"10.0.0.{node[1]}", "port": 5, "flops_per_s": 1e9, "gpus": []}


def row(node: str, level: Level) -> dict[str, Any]:
    return {"op": "row", "node": node, "row": "disk", "level": level, "found": "full", "cure": "empty it"}


def answered(checking: Checking, *messages: dict[str, Any], now_s: float) -> list[dict[str, Any]]:
    for message in messages:
        checking.hear(message, now_s)
    return checking.next_orders(now_s, has_ended=False)


def test_from_looking_to_the_last_pair() -> None:
    checking = Checking(HOSTS, 120.0, 0.0)
    assert answered(checking, row("v2", Level.fail), checked("v1"), checked("v2"), now_s=3.0) == []
    assert answered(checking, checked("v3"), now_s=4.0) == [{"op": "clock"}]
    clocks = [{"op": "clock", "node": node, "time_s": 1000.0} for node in HOSTS]
    orders = answered(checking, *clocks, now_s=4.5)
    turns = 0
    while orders:
        (order,) = orders
        turn, pair = order["turn"], order["nodes"]
        assert (order["op"], turn, order["address"]) == ("pair", turns, f"10.0.0.{pair[0][1]}")
        turns += 1
        said = [{"op": "paired", "node": node, "turn": turn, "bytes_per_s": 5e8} for node in pair]
        assert answered(checking, said[0], now_s=5.0) == []
        orders = answered(checking, said[1], now_s=5.0)
    assert (turns, checking.is_complete, checking.silent) == (3, True, {})
    assert {node: set(check.pairs) for node, check in checking.checks.items()} == {
        node: {*HOSTS} - {node} for node in HOSTS
    }
    assert checking.checks["v1"].clock is not None
    assert checking.checks["v1"].clock.asked_s == (4.0, 4.5)
    assert unfit(HOSTS, checking.checks, checking.silent, 0.5) == {"v2": "disk: full"}


def test_a_node_that_says_nothing_is_waited_for_no_longer_than_the_others_took_thrice() -> None:
    checking = Checking(HOSTS, 120.0, 0.0)
    assert checking.left_s(0.0) == 120.0
    assert answered(checking, checked("v1"), now_s=2.0) == []
    assert answered(checking, checked("v2"), now_s=20.0) == []
    assert checking.left_s(20.0) == 40.0
    assert answered(checking, now_s=59.0) == []
    assert answered(checking, now_s=60.0) == [{"op": "clock"}]
    assert checking.silent == {"v3": "has not answered in 60 s; see the job's output for srun's words"}
    assert [order["nodes"] for order in answered(checking, now_s=60.0 + STEP_TIMEOUT_S)] == [["v1", "v2"]]
    quick = Checking(HOSTS, 120.0, 0.0)
    answered(quick, checked("v1"), checked("v2"), now_s=2.0)
    assert quick.left_s(2.0) == PATIENCE_S - 2.0


def test_a_node_that_fails_at_work_is_not_waited_for() -> None:
    checking = Checking(HOSTS[:2], 120.0, 0.0)
    broken = {"op": "failed", "node": "v2", "text": "CUDA error: uncorrectable ECC error encountered"}
    assert answered(checking, row("v2", Level.fail), checked("v1"), broken, now_s=2.0) == [{"op": "clock"}]
    assert checking.silent == {"v2": "disk: full; CUDA error: uncorrectable ECC error encountered"}


def test_a_pair_that_does_not_answer_has_no_rate() -> None:
    checking = Checking(HOSTS[:2], 120.0, 0.0)
    answered(checking, checked("v1"), checked("v2"), now_s=1.0)
    answered(checking, *({"op": "clock", "node": node, "time_s": 0.0} for node in HOSTS[:2]), now_s=1.0)
    failed = {"op": "paired", "node": "v1", "turn": 0, "bytes_per_s": 0.0, "error": "timed out"}
    assert answered(checking, failed, now_s=2.0) == []
    assert answered(checking, now_s=1.0 + STEP_TIMEOUT_S) == []
    assert checking.is_complete
    assert [checking.checks[node].pairs for node in HOSTS[:2]] == [{"v2": 0.0}, {"v1": 0.0}]


def test_one_node_is_paired_with_nobody_and_none_is_no_reason_to_wait() -> None:
    alone = Checking(["v1"], 120.0, 0.0)
    assert answered(alone, checked("v1"), now_s=1.0) == [{"op": "clock"}]
    answered(alone, {"op": "clock", "node": "v1", "time_s": 0.0}, now_s=1.0)
    assert alone.is_complete
    dead = Checking(HOSTS, 120.0, 0.0)
    assert dead.next_orders(1.0, has_ended=True) == []
    assert dead.is_complete
    assert set(dead.silent) == {*HOSTS}


def test_bad_nodes_are_written_for_people_and_read_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert read_bad_nodes(folder) == []
    add_bad_nodes(folder, {}, 1000.0)
    assert not folder.bad_nodes.exists()
    add_bad_nodes(folder, {"v2": "disk: full\nof logs"}, 1000.0)
    add_bad_nodes(folder, {"v4": "slow", "v2": "slow"}, 2000.0)
    first, *others = read_bad_nodes(folder)
    assert (first.node, first.time_s, first.reason) == ("v2", 1000.0, "disk: full of logs")
    assert [(entry.node, entry.time_s) for entry in others] == [("v4", 2000.0), ("v2", 2000.0)]
    assert folder.bad_nodes.read_text().splitlines()[0].startswith("# ")
    assert excluded("n[1-3]", read_bad_nodes(folder)) == "n[1-3],v2,v4"
    folder.bad_nodes.write_text("# nothing\n\n  v7\nv8 broken fan\n")
    assert [(entry.node, entry.time_s, entry.reason) for entry in read_bad_nodes(folder)] == [
        ("v7", 0.0, ""),
        ("v8", 0.0, "fan"),
    ]
    assert excluded(None, []) is None


def test_preflights_in_a_row_are_counted_since_the_last_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for time_s in (1000.0, 2000.0, 3000.0):
        add_bad_nodes(folder, {"v1": "slow", "v2": "slow"}, time_s)
    assert moves(read_bad_nodes(folder), []) == 3
    assert moves(read_bad_nodes(folder), [{"event": "attempt_started", "t": 1500.0}]) == 2
