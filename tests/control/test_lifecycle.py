"""The state machine as its whole table, and the budget of failures."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.control.lifecycle import (
    Action,
    AllDone,
    AnomalyFound,
    AttemptFailed,
    Budget,
    Drained,
    Event,
    FirstStep,
    GaveUp,
    NodeLost,
    NodesBack,
    Paused,
    Placed,
    PreemptionNotice,
    State,
    Stopped,
    Superseded,
    decide,
)
from orchestrator.errors import LifecycleError

EVENTS: dict[str, Event] = {
    "placed": Placed(),
    "first_step": FirstStep(),
    "failed": AttemptFailed("rank 1: step 4"),
    "node_lost": NodeLost("node-1"),
    "anomaly": AnomalyFound(),
    "stopped": Stopped(),
    "all_done": AllDone(),
    "drained": Drained(),
    "nodes_back": NodesBack(),
    "paused": Paused(),
    "notice": PreemptionNotice(),
    "gave_up": GaveUp(),
    "superseded": Superseded(),
}

# What can happen in each state, with a budget to spare: event -> next state, action, whether a failure is paid for.
# Every pair that is not here can't happen.
TABLE: dict[str, dict[str, tuple[str, str, bool]]] = {
    "placing": {
        "placed": ("starting", "start", False),
        "failed": ("replacing", "stop", True),  # they could not be introduced to each other: all over again
        "node_lost": ("replacing", "stop", True),
        "notice": ("preempted", "leave", False),
        "gave_up": ("failing", "stop", False),
        "superseded": ("failed", "none", False),
    },
    "starting": {
        "first_step": ("running", "none", False),
        "failed": ("stopping", "stop", True),
        "node_lost": ("replacing", "stop", True),
        "anomaly": ("stopping", "stop", True),
        "all_done": ("finished", "finish", False),  # the last step was done before this attempt
        "notice": ("draining", "drain", False),
        "gave_up": ("failing", "stop", False),
        "superseded": ("failed", "none", False),
    },
    "running": {
        "nodes_back": ("growing", "pause", False),
        "failed": ("stopping", "stop", True),
        "node_lost": ("replacing", "stop", True),
        "anomaly": ("stopping", "stop", True),
        "all_done": ("finished", "finish", False),
        "notice": ("draining", "drain", False),
        "gave_up": ("failing", "stop", False),
        "superseded": ("failed", "none", False),
    },
    "stopping": {
        "failed": ("stopping", "none", False),  # the follow-on errors of the other ranks
        "node_lost": ("replacing", "none", False),
        "anomaly": ("stopping", "none", False),
        "stopped": ("starting", "start", False),
        "notice": ("leaving", "none", False),
        "gave_up": ("failing", "stop", False),
        "superseded": ("failed", "none", False),
    },
    "replacing": {
        "failed": ("replacing", "none", False),
        "node_lost": ("replacing", "none", False),
        "anomaly": ("replacing", "none", False),
        "stopped": ("placing", "place", False),
        "notice": ("leaving", "none", False),
        "gave_up": ("failing", "stop", False),
        "superseded": ("failed", "none", False),
    },
    "growing": {
        "failed": ("stopping", "stop", True),
        "node_lost": ("replacing", "stop", True),
        "anomaly": ("stopping", "stop", True),
        "paused": ("replacing", "stop", False),
        "all_done": ("finished", "finish", False),  # they were asked during the last step
        "notice": ("draining", "drain", False),
        "gave_up": ("failing", "stop", False),
        "superseded": ("failed", "none", False),
    },
    "draining": {
        "paused": ("leaving", "stop", False),  # the notice came when they had left already
        "first_step": ("draining", "none", False),
        "failed": ("leaving", "stop", False),
        "node_lost": ("leaving", "stop", False),
        "anomaly": ("leaving", "stop", False),
        "all_done": ("finished", "finish", False),  # the notice came during the last step
        "drained": ("preempted", "leave", False),
        "notice": ("leaving", "stop", False),
        "gave_up": ("failing", "stop", False),
        "superseded": ("failed", "none", False),
    },
    "leaving": {
        "failed": ("leaving", "none", False),
        "node_lost": ("leaving", "none", False),
        "anomaly": ("leaving", "none", False),
        "stopped": ("preempted", "leave", False),
        "notice": ("leaving", "none", False),
        "gave_up": ("leaving", "none", False),
        "superseded": ("failed", "none", False),
    },
    "failing": {
        "failed": ("failing", "none", False),
        "node_lost": ("failing", "none", False),
        "anomaly": ("failing", "none", False),
        "stopped": ("failed", "fail", False),
        "notice": ("failing", "none", False),
        "gave_up": ("failing", "none", False),
        "superseded": ("failed", "none", False),
    },
    "finished": {},
    "failed": {},
    "preempted": {},
}
PAIRS = [(state, event) for state in TABLE for event in EVENTS]
AMPLE = Budget(restarts_left=5, identical_limit=3, last_signature="another", identical=2, rollbacks_left=2)


def test_the_table_has_every_state():
    assert set(TABLE) == {state.value for state in State}
    assert {type(event) for event in EVENTS.values()} == set(Event.__args__)


@pytest.mark.parametrize(("state", "name"), PAIRS, ids=[f"{state}-{event}" for state, event in PAIRS])
def test_every_pair_of_state_and_event(state, name):
    event = EVENTS[name]
    if name not in TABLE[state]:
        with pytest.raises(LifecycleError, match=type(event).__name__):
            decide(State(state), event, AMPLE)
        return
    target, action, is_paid = TABLE[state][name]
    decision = decide(State(state), event, AMPLE)
    assert (decision.state, decision.action) == (State(target), Action(action))
    if is_paid and name == "anomaly":
        assert decision.budget == replace(AMPLE, rollbacks_left=1)
    elif is_paid:
        assert decision.budget == replace(AMPLE, restarts_left=4, last_signature=event.signature, identical=1)
    else:
        assert decision.budget == AMPLE


def test_the_end_states_are_the_three_without_a_way_out():
    assert {state for state in State if state.is_end} == {State.finished, State.failed, State.preempted}
    assert all(bool(TABLE[state.value]) != state.is_end for state in State)


@pytest.mark.parametrize(("failure", "after"), [(AttemptFailed, State.stopping), (NodeLost, State.replacing)])
@pytest.mark.parametrize("state", [State.placing, State.starting, State.running])
def test_a_failure_beyond_the_budget_ends_the_run(failure, after, state):
    last = decide(state, failure("a"), Budget(restarts_left=1, identical_limit=3))
    after = State.replacing if state is State.placing else after
    assert (last.state, last.action, last.budget.restarts_left) == (after, Action.stop, 0)
    beyond = decide(state, failure("b"), last.budget)
    assert (beyond.state, beyond.action, beyond.budget.restarts_left) == (State.failing, Action.stop, -1)


def test_a_node_lost_while_placing_costs_one_failure_and_is_placed_again():
    budget = Budget(restarts_left=2, identical_limit=3)
    state, actions = State.running, []
    for event in (NodeLost("a"), Stopped(), NodeLost("b"), Stopped(), Placed(), FirstStep()):
        decision = decide(state, event, budget)
        state, budget = decision.state, decision.budget
        actions.append(decision.action)
    assert actions == [Action.stop, Action.place, Action.stop, Action.place, Action.start, Action.none]
    assert (state, budget.restarts_left) == (State.running, 0)


def test_growing_costs_nothing():
    budget = Budget(restarts_left=0, identical_limit=1)
    state = State.running
    for event in (NodesBack(), Paused(), Stopped(), Placed(), FirstStep()):
        decision = decide(state, event, budget)
        state = decision.state
        assert decision.budget == budget
    assert state is State.running


def test_no_restarts_means_the_first_failure_ends_the_run():
    decision = decide(State.running, AttemptFailed("a"), Budget(restarts_left=0, identical_limit=3))
    assert (decision.state, decision.action) == (State.failing, Action.stop)


def fail_in_turn(signatures: list[str], identical_limit: int = 3) -> tuple[list[State], Budget]:
    """The states after each failure of a running attempt."""
    budget, states = Budget(restarts_left=100, identical_limit=identical_limit), []
    for signature in signatures:
        decision = decide(State.running, AttemptFailed(signature), budget)
        budget = decision.budget
        states.append(decision.state)
    return states, budget


def test_the_third_identical_failure_in_a_row_ends_the_run():
    states, budget = fail_in_turn(["a", "a", "a"])
    assert states == [State.stopping, State.stopping, State.failing]
    assert (budget.identical, budget.restarts_left) == (3, 97)


def test_another_failure_in_between_starts_the_count_anew():
    states, budget = fail_in_turn(["a", "a", "b", "a", "a"])
    assert states == [State.stopping] * 5
    assert (budget.last_signature, budget.identical) == ("a", 2)


def test_one_identical_failure_is_the_first():
    assert fail_in_turn(["a"], identical_limit=1)[0] == [State.failing]


def test_a_rank_and_its_node_with_the_same_words_are_the_same_failure():
    first = decide(State.running, NodeLost("a"), Budget(restarts_left=9, identical_limit=2))
    assert decide(State.running, AttemptFailed("a"), first.budget).state is State.failing


def test_a_full_cycle_of_recovery_costs_one_restart():
    budget = Budget(restarts_left=2, identical_limit=3)
    state, actions = State.running, []
    for event in (AttemptFailed("a"), AttemptFailed("follows"), Stopped(), FirstStep()):
        decision = decide(state, event, budget)
        state, budget = decision.state, decision.budget
        actions.append(decision.action)
    assert actions == [Action.stop, Action.none, Action.start, Action.none]
    assert (state, budget.restarts_left, budget.last_signature) == (State.running, 1, "a")


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(1, 6), st.lists(st.sampled_from("abc"), min_size=1, max_size=40))
def test_a_run_fails_exactly_when_its_budget_is_spent(restarts, limit, signatures):
    budget = Budget(restarts_left=restarts, identical_limit=limit)
    for count, signature in enumerate(signatures, start=1):
        decision = decide(State.running, AttemptFailed(signature), budget)
        budget = decision.budget
        streak = next((i for i, s in enumerate(reversed(signatures[:count])) if s != signature), count)
        assert (decision.state is State.failing) == (count > restarts or streak >= limit)
        if decision.state is State.failing:
            return


def test_bad_numbers_have_a_budget_of_their_own():
    budget = Budget(restarts_left=0, identical_limit=1, rollbacks_left=2)
    states = []
    for _ in range(3):
        decision = decide(State.running, AnomalyFound(), budget)
        budget = decision.budget
        states.append(decision.state)
    assert states == [State.stopping, State.stopping, State.failing]
    assert (budget.restarts_left, budget.identical, budget.rollbacks_left) == (0, 0, -1)


@pytest.mark.parametrize("is_past_anomaly", [True, False])
def test_a_checkpoint_renews_the_budget_but_for_rollbacks_before_the_last_anomaly(is_past_anomaly):
    full = Budget(restarts_left=9, identical_limit=3, rollbacks_left=3)
    spent = full.spend("a").roll_back()
    renewed = spent.renewed(full, is_past_anomaly=is_past_anomaly)
    assert renewed == replace(full, rollbacks_left=3 if is_past_anomaly else 2)
