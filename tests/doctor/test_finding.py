"""What several nodes say becomes rows that a person can act on."""

import pytest

from orchestrator.doctor.finding import (
    Finding,
    Level,
    NodeReport,
    as_lines,
    clock_findings,
    joint_findings,
    missing_findings,
    worst,
)

FINE = Finding("torch", Level.ok, "2.13.0")
OLD = Finding("torch", Level.fail, "2.10.0", "install the pinned set")


def report(host: str, *findings: Finding, time_s: float = 100.0) -> NodeReport:
    return NodeReport(host, time_s, (99.0, 101.0), findings)


def test_nodes_that_agree_share_a_row():
    (row,) = joint_findings([report("n1", FINE), report("n2", FINE)])
    assert (row.level, row.found) == (Level.ok, "2.13.0 (all 2 nodes)")


def test_the_one_that_differs_is_named_last_with_its_cure():
    rows = joint_findings([report("n1", OLD), report("n2", FINE), report("n3", FINE)])
    assert [(row.level, row.found, row.cure) for row in rows] == [
        (Level.ok, "2.13.0 (n2, n3)", ""),
        (Level.fail, "2.10.0 (n1)", "install the pinned set"),
    ]


@pytest.mark.parametrize(
    ("time_s", "level", "words"),
    [
        (99.0, Level.ok, "within 1 s"),
        (101.9, Level.ok, "within 1 s"),
        (103.5, Level.warn, "2.5 s off"),
        (60.0, Level.fail, "39.0 s off"),
    ],
)
def test_a_clock_is_off_by_what_the_asking_does_not_explain(time_s: float, level: Level, words: str):
    (row,) = clock_findings([report("n1", time_s=time_s)])
    assert row.level is level
    assert words in row.found
    assert bool(row.cure) == (level is not Level.ok)


def test_nodes_that_said_nothing_fail_with_their_last_words():
    rows = missing_findings(["n1", "n2", "n3"], [report("n2")], {"n3": "python: not found"})
    assert [(row.row, row.level, row.found) for row in rows] == [
        ("node n1", Level.fail, "has not answered"),
        ("node n3", Level.fail, "python: not found"),
    ]


def test_the_worst_row_decides():
    assert worst([]) is Level.ok
    assert worst([FINE, Finding("disk", Level.warn, "full", "free some"), FINE]) is Level.warn
    assert worst([OLD, FINE]) is Level.fail


def test_a_cure_stands_under_its_row():
    first, second = as_lines([OLD])
    assert first.split() == ["FAIL", "torch", "2.10.0"]
    assert second.index("->") == first.index("2.10.0")
