"""From the ledger to what went wrong: each failure once, with its cause and its price. Plan half."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.observe.failure import Cause, RankFailure, classify, first_failure
from orchestrator.observe.wording import event_line

Event = Mapping[str, Any]

FAULTS = frozenset({"rank_died", "node_lost", "hang_detected", "anomaly", "rollback"})


class Kind(StrEnum):
    failure = "failure"
    anomaly = "anomaly"
    """The numbers went wrong, not a machine."""
    preemption = "preemption"
    resize = "resize"


@dataclass(frozen=True, kw_only=True, slots=True)
class Incident:
    number: int
    """From 1, in order of time."""
    kind: Kind
    time: float
    """Unix seconds."""
    step: int
    """Newest step that was done."""
    words: str
    """What happened, one line."""
    cause: str
    follow_ons: int = 0
    """Events of other ranks that the first one drew along."""
    downtime_s: float | None = None
    """Until the first step after it; None where none came, or where it cost none."""
    steps_lost: int = 0
    """Run again."""
    source: str | None = None
    """Where the state came from."""


@dataclass(slots=True)
class _Open:
    """A failure of which the ledger has not told the end yet."""

    events: list[Event] = field(default_factory=list)

    def closed(self, number: int, recovered: Event | None) -> Incident:
        told = self._first()
        price = recovered or {}
        kind = Kind.anomaly if told["event"] in ("anomaly", "rollback") else Kind.failure
        return Incident(
            number=number,
            kind=kind,
            time=self.events[0]["t"],
            step=max(event.get("step") or 0 for event in self.events),
            words=_words(told),
            cause=str(_cause(told)),
            follow_ons=len(self.events) - 1,
            downtime_s=price.get("downtime_s"),
            steps_lost=price.get("steps_lost") or 0,
            source=price.get("source"),
        )

    def _first(self) -> Event:
        """The event that the others follow from."""
        others = [event for event in self.events if event["event"] != "rank_died"]
        if others:
            return others[0]
        failures = [_rank_failure(event) for event in self.events]
        return self.events[failures.index(first_failure(failures))]


def incidents(events: Iterable[Event]) -> list[Incident]:
    """Every failure, anomaly, preemption and resize, oldest first."""
    found: list[Incident] = []
    under_way = _Open()
    for event in events:
        name = event["event"]
        if name in FAULTS:
            under_way.events.append(event)
        elif name == "recovered" and not under_way.events:
            found.append(_driver_death(len(found) + 1, event))
        elif name in ("recovered", "run_failed", "run_finished") and under_way.events:
            found.append(under_way.closed(len(found) + 1, event if name == "recovered" else None))
            under_way = _Open()
        elif name in ("preemption_notice", "resized"):
            found.append(_notice(len(found) + 1, event))
    if under_way.events:
        found.append(under_way.closed(len(found) + 1, None))
    return found


def costliest(found: Sequence[Incident], most: int) -> list[Incident]:
    """At most `most` of them, those with the longest downtime, in order of time."""
    by_price = sorted(found, key=lambda incident: -(incident.downtime_s or 0.0))[:most]
    return sorted(by_price, key=lambda incident: incident.number)


def _driver_death(number: int, recovered: Event) -> Incident:
    """A recovery without a failure in the ledger: who would have written it down was dead."""
    downtime_s = recovered.get("downtime_s") or 0.0
    lost = recovered.get("steps_lost") or 0
    return Incident(
        number=number,
        kind=Kind.failure,
        time=recovered["t"] - downtime_s,
        step=max(0, (recovered.get("step") or 0) - 1 + lost),
        words="the driver was gone, or its machine: a new one went on with the run",
        cause=str(Cause.node),
        downtime_s=downtime_s,
        steps_lost=lost,
        source=recovered.get("source"),
    )


def _notice(number: int, event: Event) -> Incident:
    kind = Kind.preemption if event["event"] == "preemption_notice" else Kind.resize
    return Incident(
        number=number,
        kind=kind,
        time=event["t"],
        step=event.get("step") or 0,
        words=_words(event),
        cause="asked to stop" if kind is Kind.preemption else "other workers",
    )


def _words(event: Event) -> str:
    return event_line(event) or " ".join(
        [str(event["event"]).replace("_", " "), *str(event.get("message") or "").split()]
    )


def _cause(event: Event) -> str:
    match event["event"]:
        case "hang_detected":
            return str(Cause.hang)
        case "node_lost":
            return str(Cause.node)
        case "anomaly" | "rollback":
            return "bad numbers"
        case _:
            return str(classify(_rank_failure(event)))


def _rank_failure(event: Event) -> RankFailure:
    return RankFailure(
        rank=event.get("rank") or 0,
        node=str(event.get("node") or "?"),
        time_s=event["t"],
        exit_code=event.get("exit_code"),
        signal=event.get("signal"),
        message=event.get("message") or "",
    )
