"""The simulation finds what is wrong with a lifecycle: every transition that it goes through, left out or exchanged
for another, violates something. A simulation that passes whatever the controller does would prove nothing."""

from collections.abc import Callable

import pytest
from simulated import setting

from orchestrator.control.lifecycle import (
    Action,
    AllDone,
    AnomalyFound,
    AttemptFailed,
    Budget,
    Decide,
    Decision,
    Drained,
    Event,
    FirstStep,
    GaveUp,
    NodeLost,
    Placed,
    PreemptionNotice,
    State,
    Stopped,
    decide,
)
from orchestrator.simulate.campaign import Rehearsals
from orchestrator.simulate.faults import UNINJECTED, Fault

MOST_SEEDS = 80
Pair = tuple[State, type]

DROPPED: list[Pair] = [
    (State.placing, Placed),
    (State.placing, GaveUp),
    (State.starting, FirstStep),
    (State.starting, AttemptFailed),
    (State.running, AttemptFailed),
    (State.running, NodeLost),
    (State.running, AllDone),
    (State.running, PreemptionNotice),
    (State.running, GaveUp),
    (State.stopping, NodeLost),
    (State.stopping, Stopped),
    (State.replacing, Stopped),
]
RARE: list[tuple[Pair, Fault]] = [
    ((State.starting, NodeLost), Fault.in_recovery),
    ((State.draining, AttemptFailed), Fault.in_leaving),
    ((State.draining, NodeLost), Fault.in_leaving),
    ((State.draining, Drained), Fault.preemption),
    ((State.leaving, Stopped), Fault.in_leaving),
    ((State.failing, Stopped), Fault.duplicate),
    ((State.starting, PreemptionNotice), Fault.in_recovery),
    ((State.starting, GaveUp), Fault.duplicate),
    ((State.running, AnomalyFound), Fault.bad_numbers),
]
SWAPPED: list[tuple[Pair, Pair]] = [
    ((State.stopping, Stopped), (State.replacing, Stopped)),
    ((State.running, AttemptFailed), (State.running, NodeLost)),
    ((State.running, AllDone), (State.draining, Drained)),
    ((State.leaving, Stopped), (State.failing, Stopped)),
    ((State.running, PreemptionNotice), (State.running, AttemptFailed)),
]


def without(*pairs: Pair) -> Decide:
    def mutated(state: State, event: Event, budget: Budget) -> Decision:
        if (state, type(event)) in pairs:
            return Decision(state, Action.none, budget)
        return decide(state, event, budget)

    return mutated


def exchanged(first: Pair, second: Pair) -> Decide:
    others = {first: second, second: first}
    events: dict[type, Event] = {AttemptFailed: AttemptFailed("exchanged"), NodeLost: NodeLost("exchanged")}

    def mutated(state: State, event: Event, budget: Budget) -> Decision:
        state, kind = others.get((state, type(event)), (state, type(event)))
        return decide(state, event if isinstance(event, kind) else events.get(kind) or kind(), budget)

    return mutated


def never_spent(state: State, event: Event, budget: Budget) -> Decision:
    decision = decide(state, event, Budget(restarts_left=10**6, identical_limit=10**6))
    return Decision(decision.state, decision.action, budget)


def spent_at_once(state: State, event: Event, budget: Budget) -> Decision:
    if isinstance(event, AttemptFailed | NodeLost):
        return decide(state, event, Budget(restarts_left=0, identical_limit=1))
    return decide(state, event, budget)


def seed_that_finds(mutated: Decide, kinds: tuple[Fault, ...] = UNINJECTED) -> int | None:
    rehearsals = Rehearsals(setting(), mutated, kinds)
    return next((seed for seed in range(MOST_SEEDS) if rehearsals.run(seed).violations), None)


def test_without_a_mutation_the_same_schedules_find_nothing() -> None:
    assert seed_that_finds(decide) is None


@pytest.mark.parametrize("pair", DROPPED, ids=lambda pair: f"{pair[0]}-{pair[1].__name__}")
def test_a_transition_that_is_left_out_is_found(pair: Pair) -> None:
    assert seed_that_finds(without(pair)) is not None


@pytest.mark.parametrize(("pair", "kind"), RARE, ids=str)
def test_a_transition_that_needs_a_coincidence_is_found_where_there_are_some(pair: Pair, kind: Fault) -> None:
    assert seed_that_finds(without(pair), (kind,)) is not None


def test_a_failure_while_placing_that_is_left_out_is_found() -> None:
    """Either of the two would do: whoever does not answer has failed, lost or not."""
    mutated = without((State.placing, NodeLost), (State.placing, AttemptFailed))
    assert seed_that_finds(mutated, (Fault.in_recovery,)) is not None


@pytest.mark.parametrize("pairs", SWAPPED, ids=lambda pairs: "-".join(f"{s}-{e.__name__}" for s, e in pairs))
def test_two_transitions_that_are_exchanged_are_found(pairs: tuple[Pair, Pair]) -> None:
    assert seed_that_finds(exchanged(*pairs)) is not None


@pytest.mark.parametrize("mutated", [never_spent, spent_at_once])
def test_a_budget_that_is_not_kept_is_found(mutated: Callable[..., Decision]) -> None:
    assert seed_that_finds(mutated) is not None
