"""What a new driver makes of agents that an earlier one has left: the attempt that they were at. Plan half."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.codec import decode
from orchestrator.control.attempt import Attempt, Message
from orchestrator.control.stragglers import StragglerWatch
from orchestrator.observe.metrics import StepRow
from orchestrator.spec import Placement, ResumePoint

ROW_KINDS = frozenset({"step", "step_again", "evaluated"})


@dataclass(frozen=True, slots=True)
class Inherited:
    """From one agent."""

    node: int
    attempt: dict[str, Any] | None
    """See `attempt_facts`; None where it had started none."""
    events: list[Message]
    """What its ranks said last; a driver may have heard some of it."""


@dataclass(frozen=True, slots=True)
class Heritage:
    attempt: Attempt
    """As far as the run folder knows it."""
    unheard: tuple[Message, ...]
    """Reports of steps that it does not know, and what the ranks printed."""
    anomalies: tuple[Message, ...] = ()
    """What they said of bad numbers; it may know of that."""


def heritage(
    found: Sequence[Inherited], placement: Placement, zero_stage: int, last_row: StepRow | None, now_s: float
) -> Heritage | None:
    """The newest attempt of which the agents' memory can be used; None where its ranks were others than this run's.

    `now_s` is monotonic.
    """
    number = max((one.attempt["number"] for one in found if one.attempt), default=None)
    known = {one.node: one.attempt for one in found if one.attempt and one.attempt["number"] == number}
    if number is None or any(not _fits(facts, node, placement, zero_stage) for node, facts in known.items()):
        return None
    resume = next((facts["resume"] for facts in known.values() if "resume" in facts), None)
    if resume is None:
        return None
    attempt = Attempt(number, decode(ResumePoint, resume), len(placement.ranks), now_s, StragglerWatch(0.0))
    if last_row is not None and last_row.attempt == number:
        attempt.last_step = max(attempt.last_step, last_row.step)
    unheard = [
        event
        for one in found
        for event in one.events
        if event["attempt"] == number
        and (event["kind"] == "output" or (event["kind"] in ROW_KINDS and event["step"] > attempt.last_step))
    ]
    said = (event for one in found for event in one.events)
    anomalies = tuple(event for event in said if event["attempt"] == number and event["kind"] == "anomaly")
    return Heritage(attempt, tuple(unheard), anomalies)


def _fits(facts: dict[str, Any], node: int, placement: Placement, zero_stage: int) -> bool:
    """Whether an agent's ranks were those that this placement puts there, and partitioned alike."""
    ranks = [place.rank for place in placement.ranks if place.node == node]
    is_same_world = facts.get("world_size") == len(placement.ranks)
    return sorted(facts["ranks"]) == ranks and is_same_world and facts.get("zero_stage") == zero_stage


def attempt_facts(attempt: int, common: dict[str, Any], own_parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of an attempt's encoded WorkerSpecs, what tells whether its snapshots fit another attempt."""
    shared = {key: common[key] for key in ("world_size", "zero_stage", "resume")} if own_parts else {}
    return {"number": attempt, "ranks": [part["rank"] for part in own_parts], **shared}
