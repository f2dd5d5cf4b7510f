"""What a new driver makes of the agents that it finds: by name, and by what they say of their last attempt."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.agent.lease import LeaseTerms
from orchestrator.codec import encode
from orchestrator.control.inheritance import Inherited, heritage
from orchestrator.fleet.tenancy import Tenancy, newest_agents
from orchestrator.observe.metrics import StepRow
from orchestrator.spec import Bundle, Placement, RankPlace, ResumePoint

TWO_NODES = Placement(
    bundles=(Bundle(workers=1, cpus=1, gpus=0),) * 2,
    ranks=(RankPlace(rank=0, node=0, local_rank=0), RankPlace(rank=1, node=1, local_rank=0)),
)
RESUME = ResumePoint(step=3, source="disk", checkpoint="/c/step_00000003", skipped_windows=(1,))
OURS = Tenancy("run-a", 7, LeaseTerms(15.0, 600.0))


def facts(rank: int, number: int = 4, **changed: Any) -> dict[str, Any]:
    return {"number": number, "ranks": [rank], "world_size": 2, "zero_stage": 2, "resume": encode(RESUME)} | changed


def said(rank: int, *steps: int, attempt: int = 4, kind: str = "step") -> list[dict[str, Any]]:
    return [{"kind": kind, "attempt": attempt, "rank": rank, "step": step} for step in steps]


def row(step: int, attempt: int = 4) -> StepRow:
    return StepRow(
        step=step, attempt=attempt, loss=1.0, lr=1.0, grad_norm=1.0, tokens=1, tokens_per_s=1.0, step_s=1.0,
        data_s=0.0, batch_digest="0" * 16,
    )  # fmt: skip


def test_the_attempt_and_what_the_run_folder_does_not_know_of_it() -> None:
    found = [Inherited(0, facts(0), said(0, 4, 5, 6)), Inherited(1, facts(1), said(1, 5, 6, 7))]
    left = heritage(found, TWO_NODES, 2, row(5), 0.0)
    assert left is not None
    assert (left.attempt.number, left.attempt.resume, left.attempt.last_step) == (4, RESUME, 5)
    assert [(event["rank"], event["step"]) for event in left.unheard] == [(0, 6), (1, 6), (1, 7)]


def test_reports_of_older_attempts_are_not_heard_and_output_is() -> None:
    events = [
        *said(0, 9, attempt=3),
        {"kind": "output", "attempt": 4, "rank": 0, "text": "x"},
        *said(0, 9, kind="done"),
    ]
    left = heritage(
        [Inherited(0, facts(0), events), Inherited(1, facts(1), [])], TWO_NODES, 2, row(9, attempt=3), 0.0
    )
    assert left is not None
    assert left.attempt.last_step == RESUME.step
    assert [event["kind"] for event in left.unheard] == ["output"]


def test_what_was_said_of_bad_numbers_is_heard_whether_the_step_is_known_or_not() -> None:
    found = [Inherited(0, facts(0), [*said(0, 9), *said(0, 9, kind="anomaly"), *said(0, 5, 3, kind="anomaly")])]
    found[0].events[-1]["attempt"] = 3
    left = heritage(found, TWO_NODES, 2, row(9), 0.0)
    assert left is not None
    assert left.unheard == ()
    assert [(event["attempt"], event["step"]) for event in left.anomalies] == [(4, 9), (4, 5)]


def test_a_node_whose_agent_is_gone_or_new_does_not_matter() -> None:
    """Its ranks come from its peer, or nothing does: that is for whoever looks at the snapshots."""
    for others in ([], [Inherited(1, None, [])], [Inherited(1, facts(1, number=3), [])]):
        left = heritage([Inherited(0, facts(0), []), *others], TWO_NODES, 2, None, 0.0)
        assert left is not None
        assert left.attempt.number == 4


@pytest.mark.parametrize(
    "changed", [{"world_size": 3}, {"zero_stage": 1}, {"ranks": [1]}, {"ranks": [0, 1]}, {"ranks": []}]
)
def test_ranks_that_were_others_leave_nothing(changed: dict[str, Any]) -> None:
    found = [Inherited(0, facts(0) | changed, []), Inherited(1, facts(1), [])]
    assert heritage(found, TWO_NODES, 2, None, 0.0) is None


def test_agents_that_never_started_an_attempt_leave_nothing() -> None:
    assert heritage([Inherited(0, None, [])], TWO_NODES, 2, None, 0.0) is None
    assert heritage([], TWO_NODES, 2, None, 0.0) is None


def test_agents_are_found_by_name_and_others_are_never_touched() -> None:
    later = replace(OURS, generation=12)
    others = ["phalanx", "run-a", "run-ab/agent-00000/1.1", "x/run-a/agent-00000/1.1", "run-a/nodes/7.1"]
    names = [OURS.agent_name(0, 2), OURS.agent_name(0, 11), OURS.agent_name(1, 3), later.agent_name(1, 1), *others]
    newest, stale = newest_agents(names, "run-a")
    assert newest == {0: OURS.agent_name(0, 11), 1: later.agent_name(1, 1)}
    assert sorted(stale) == sorted([OURS.agent_name(0, 2), OURS.agent_name(1, 3)])
    assert OURS.is_ours(OURS.group_name(1))
    assert not OURS.is_ours("run-ab/nodes/7.1")
