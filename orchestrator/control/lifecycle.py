"""The life of a run as one pure function over (state, event, budget). Plan half.

PLACING -> STARTING -> RUNNING -> FINISHED is the calm run. A failure stops every rank of the attempt
(STOPPING), then a new attempt starts (STARTING) from the newest point that memory or storage holds, or is placed
anew (REPLACING) where a node was lost: on another node, or with fewer workers. Bad numbers stop the ranks, too; the
next attempt starts from a point before them. Where lost nodes are back, all ranks pause at a step boundary (GROWING)
and are placed anew. A preemption notice drains (DRAINING): all ranks leave at one step boundary, after a save.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.errors import LifecycleError


class State(StrEnum):
    placing = "placing"
    """Waiting for the nodes."""
    starting = "starting"
    """Ranks are forked; no step of this attempt is done yet."""
    running = "running"
    stopping = "stopping"
    """Every rank is being stopped; a new attempt follows on the same nodes."""
    replacing = "replacing"
    """Like stopping, but a node is gone, or was while they were placed: place again afterwards."""
    growing = "growing"
    """Ranks were asked to leave at a step boundary, to be placed again on more nodes."""
    draining = "draining"
    """Ranks were asked to save and leave."""
    leaving = "leaving"
    """Ranks are being stopped; the run ends resumable."""
    failing = "failing"
    """Ranks are being stopped; the run ends failed."""
    finished = "finished"
    failed = "failed"
    preempted = "preempted"

    @property
    def is_end(self) -> bool:
        return self in _ENDS

    @property
    def is_training(self) -> bool:
        return self in (State.starting, State.running, State.growing, State.draining)


_ENDS = (State.finished, State.failed, State.preempted)


class Action(StrEnum):
    start = "start"
    """Take the next attempt's number and start its ranks."""
    place = "place"
    stop = "stop"
    """Stop every rank of the attempt."""
    pause = "pause"
    """Ask every rank to leave at a step boundary, with a snapshot in memory."""
    drain = "drain"
    finish = "finish"
    fail = "fail"
    leave = "leave"
    none = "none"


@dataclass(frozen=True, slots=True)
class Placed:
    """Every node's agent is up."""


@dataclass(frozen=True, slots=True)
class FirstStep:
    """The attempt has done its first step on every rank."""


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """A rank died, failed or never started. `signature` is equal for failures that are the same again."""

    signature: str


@dataclass(frozen=True, slots=True)
class NodeLost:
    signature: str


@dataclass(frozen=True, slots=True)
class AnomalyFound:
    """Every rank says that the numbers of its last step are bad, and has left."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """No rank of the attempt is left."""


@dataclass(frozen=True, slots=True)
class AllDone:
    """Every rank has done the last step, and the final checkpoint is committed."""


@dataclass(frozen=True, slots=True)
class Drained:
    """Every rank has saved and left."""


@dataclass(frozen=True, slots=True)
class NodesBack:
    """There is room again for the workers that the run has gone on without, or a slow node can be left."""


@dataclass(frozen=True, slots=True)
class Paused:
    """Every rank has left at a step boundary, its snapshot in memory."""


@dataclass(frozen=True, slots=True)
class PreemptionNotice:
    """The machine will be taken away, or a person asked the run to stop."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """What the run needs can't be had: no nodes in time, no checkpoint that verifies."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer driver has the run's agents: there is nothing left that this one may do."""


Event = (
    Placed
    | FirstStep
    | AttemptFailed
    | NodeLost
    | AnomalyFound
    | Stopped
    | AllDone
    | Drained
    | NodesBack
    | Paused
    | PreemptionNotice
    | GaveUp
    | Superseded
)


@dataclass(frozen=True, slots=True)
class Budget:
    """How many failures the run may still have. Passed in and handed back: no counter is hidden anywhere."""

    restarts_left: int
    identical_limit: int
    last_signature: str | None = None
    identical: int = 0
    rollbacks_left: int = 0

    def spend(self, signature: str) -> "Budget":
        again = self.identical + 1 if signature == self.last_signature else 1
        return replace(self, restarts_left=self.restarts_left - 1, last_signature=signature, identical=again)

    def roll_back(self) -> "Budget":
        return replace(self, rollbacks_left=self.rollbacks_left - 1)

    def renewed(self, full: "Budget", *, is_past_anomaly: bool) -> "Budget":
        """After a checkpoint: the limits are on failures without progress in between. Getting as far as the last
        anomaly once more is none."""
        return full if is_past_anomaly else replace(full, rollbacks_left=self.rollbacks_left)

    @property
    def is_spent(self) -> bool:
        return self.restarts_left < 0 or self.identical >= self.identical_limit or self.rollbacks_left < 0


@dataclass(frozen=True, slots=True)
class Decision:
    state: State
    action: Action
    budget: Budget


Decide = Callable[[State, Event, Budget], Decision]
_ENDING = (State.leaving, State.failing)


def decide(state: State, event: Event, budget: Budget) -> Decision:
    """What to do about `event`. Raises LifecycleError for a pair that can't happen."""
    if state.is_end:
        raise LifecycleError(f"{type(event).__name__} came after the run had {state.value}")
    match event:
        case AttemptFailed(signature) | NodeLost(signature):
            return _after_failure(state, budget.spend(signature), isinstance(event, NodeLost), budget)
        case AnomalyFound() if state is not State.placing:
            return _after_failure(state, budget.roll_back(), False, budget)
        case PreemptionNotice():
            return _after_notice(state, budget)
        case Superseded():
            return Decision(State.failed, Action.none, budget)
        case GaveUp() if state not in _ENDING:
            return Decision(State.failing, Action.stop, budget)
    target = _STRAIGHT.get((state, type(event)))
    if target is None:
        raise LifecycleError(f"{type(event).__name__} can't happen while {state.value}")
    return Decision(*target, budget)


_STRAIGHT: dict[tuple[State, type], tuple[State, Action]] = {
    (State.placing, Placed): (State.starting, Action.start),
    (State.starting, FirstStep): (State.running, Action.none),
    (State.starting, AllDone): (State.finished, Action.finish),
    (State.running, AllDone): (State.finished, Action.finish),
    (State.running, NodesBack): (State.growing, Action.pause),
    (State.growing, Paused): (State.replacing, Action.stop),
    (State.growing, AllDone): (State.finished, Action.finish),
    (State.draining, Paused): (State.leaving, Action.stop),  # the notice came when they had left already
    (State.draining, FirstStep): (State.draining, Action.none),
    (State.draining, AllDone): (State.finished, Action.finish),
    (State.draining, Drained): (State.preempted, Action.leave),
    (State.stopping, Stopped): (State.starting, Action.start),
    (State.replacing, Stopped): (State.placing, Action.place),
    (State.leaving, Stopped): (State.preempted, Action.leave),
    (State.failing, Stopped): (State.failed, Action.fail),
    # Ranks that are being stopped may still say what they had under way.
    (State.failing, GaveUp): (State.failing, Action.none),
    (State.leaving, GaveUp): (State.leaving, Action.none),
}


def _after_failure(state: State, spent: Budget, is_node: bool, budget: Budget) -> Decision:
    """`spent` is the budget after this failure, where it counts as one."""
    if state in _ENDING:
        return Decision(state, Action.none, budget)
    if state in (State.stopping, State.replacing):  # the same attempt's other ranks, or its node
        return Decision(State.replacing if is_node else state, Action.none, budget)
    if state is State.draining:
        return Decision(State.leaving, Action.stop, budget)
    if spent.is_spent:
        return Decision(State.failing, Action.stop, spent)
    is_placed = not is_node and state is not State.placing
    return Decision(State.stopping if is_placed else State.replacing, Action.stop, spent)


def _after_notice(state: State, budget: Budget) -> Decision:
    match state:
        case State.running | State.starting | State.growing:
            return Decision(State.draining, Action.drain, budget)
        case State.stopping | State.replacing:
            return Decision(State.leaving, Action.none, budget)
        case State.placing:
            return Decision(State.preempted, Action.leave, budget)
        case State.draining:  # asked twice: now, not at the boundary
            return Decision(State.leaving, Action.stop, budget)
        case _:
            return Decision(state, Action.none, budget)
