"""What simulations add up to. Plan half."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class Course:
    """How a schedule went."""

    seed: int
    violations: list[str] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    recoveries: list[dict[str, Any]] = field(default_factory=list)
    """`recovered` events, with the fault they follow from."""
    attempts: int = 0
    drivers: int = 0
    commits: int = 0
    wall_s: float = 0.0
    spent_s: dict[str, float] = field(default_factory=dict)
    """The goodput ledger's parts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultCost:
    fault: str
    count: int
    """Recoveries that followed from it."""
    downtime_s: float
    """Mean: from the moment the failure was seen to the first step after it."""
    steps_lost: float
    """Mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    schedules: int
    hours: float
    faults: int
    recoveries: int
    commits: int
    drivers: int
    violations: int


def goodput_of(course: Course) -> float:
    """The productive share of the run's time; 0 where none has passed."""
    return course.spent_s.get("productive", 0.0) / (sum(course.spent_s.values()) or 1.0)


def fault_costs(course: Course) -> list[FaultCost]:
    """The dearest first."""
    by_fault: dict[str, list[dict[str, Any]]] = {}
    for recovery in course.recoveries:
        by_fault.setdefault(recovery["fault"], []).append(recovery)
    costs = [
        FaultCost(
            fault=str(fault),
            count=len(found),
            downtime_s=sum(recovery["downtime_s"] for recovery in found) / len(found),
            steps_lost=sum(recovery["steps_lost"] for recovery in found) / len(found),
        )
        for fault, found in by_fault.items()
    ]
    return sorted(costs, key=lambda cost: -cost.count * cost.downtime_s)


def totals(courses: Iterable[Course]) -> Totals:
    made = list(courses)
    return Totals(
        schedules=len(made),
        hours=sum(course.wall_s for course in made) / 3600,
        faults=sum(course.injected.total() for course in made),
        recoveries=sum(len(course.recoveries) for course in made),
        commits=sum(course.commits for course in made),
        drivers=sum(course.drivers for course in made),
        violations=sum(len(course.violations) for course in made),
    )
