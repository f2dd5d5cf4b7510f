"""When ranks hang, and which one is to blame: what is normal, how long nothing has moved, one verdict. Plan half.

Ranks in a collective wait for each other, so all of them stand still when one does. The one that is behind all
others in (step, phase, micro-step, collective) is the one that they wait for. Time in which a rank could not have
moved doesn't count against it: while the whole machine stood still, or while it waited for a CPU.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class Phase(IntEnum):
    """What a rank is doing, in the order in which a step goes through them."""

    starting = 0
    """Importing, joining, building the engine, restoring."""
    data = 1
    """Waiting for its loader."""
    compute = 2
    """Forward and backward passes, micro-step by micro-step."""
    snapshot = 3
    """Waiting until the snapshot of the step before is whole."""
    update = 4
    vote = 5
    """Waiting for what the ranks agree on at the step's end."""
    saving = 6
    """Beginning a snapshot, and the first time getting slots for it."""
    storing = 7
    """Waiting until the last checkpoint is in storage."""
    evaluation = 8
    done = 9


PHASE_WORDS: dict[Phase, str] = {
    Phase.starting: "its start",
    Phase.data: "waiting for data",
    Phase.compute: "forward and backward",
    Phase.snapshot: "waiting for its snapshot",
    Phase.update: "the update",
    Phase.vote: "agreeing with the others",
    Phase.saving: "saving",
    Phase.storing: "waiting for storage",
    Phase.evaluation: "evaluation",
    Phase.done: "leaving",
}
WINDOW = 64
"""Durations that say what is normal."""
MIN_STEPS = 3
"""Steps done before their time is known; the first one of an attempt is never typical."""
LATEST_TICKS = 2.0
"""A look that comes later than so many intervals comes from a machine, or an agent, that stood still itself."""
_IN_STEP = frozenset({Phase.data, Phase.compute, Phase.snapshot, Phase.update, Phase.vote})


class Position(NamedTuple):
    """How far a rank is. Positions compare: the smaller one is behind."""

    step: int
    """Steps done."""
    phase: Phase = Phase.starting
    micro_step: int = 0
    collectives_entered: int = 0
    collectives_left: int = 0

    @property
    def is_in_collective(self) -> bool:
        return self.collectives_entered > self.collectives_left


@dataclass(frozen=True, slots=True)
class HangLimits:
    """How long a rank may stand still."""

    factor: float
    """Of the normal time of a step (or of a longer phase)."""
    constant_s: float
    unlearned_s: float
    """Where nothing is known of the phase yet: the start, the first steps, the first evaluation."""
    storing_s: float
    """While the last checkpoint is on its way."""


@dataclass(slots=True)
class Usual:
    """What a duration usually is: nine in ten of the last WINDOW were no longer.

    A quantile and not the mean: one step across a suspended night changes nothing, one slow step in ten is normal.
    """

    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def add(self, seconds: float) -> None:
        self._recent.append(seconds)

    def __len__(self) -> int:
        return len(self._recent)

    @property
    def seconds(self) -> float:
        """Raises IndexError where nothing was added."""
        return sorted(self._recent)[-1 - len(self._recent) // 10]


class Habits:
    """The usual time of a step and of each phase on one node: ranks go in step, so what one learns holds for all."""

    def __init__(self, limits: HangLimits) -> None:
        self._limits = limits
        self._steps = 0
        self._step = Usual()
        self._phases = {phase: Usual() for phase in Phase}

    def add_step(self, seconds: float, steps: int = 1) -> None:
        """The last of `steps` that were done since the call before took so long."""
        self._steps += steps
        self._step.add(seconds)

    def add_phase(self, phase: Phase, seconds: float) -> None:
        self._phases[phase].add(seconds)

    def usual_s(self, phase: Phase) -> float | None:
        """Seconds for which a rank in `phase` may show no movement on a normal day; None where that is not known."""
        if self._steps < MIN_STEPS:
            return None
        if phase in _IN_STEP:
            return self._step.seconds
        if phase is Phase.starting or not len(self._phases[phase]):
            return None
        return max(self._step.seconds, self._phases[phase].seconds)

    def limit_s(self, phase: Phase) -> float:
        if phase is Phase.storing:
            return self._limits.storing_s + self._limits.constant_s
        usual_s = self.usual_s(phase)
        if usual_s is None:
            return self._limits.unlearned_s
        return self._limits.factor * usual_s + self._limits.constant_s


@dataclass(slots=True)
class Stillness:
    """For how long one rank has not moved although it could have."""

    position: Position | None = None
    seconds: float = 0.0

    def look(self, position: Position, *, elapsed_s: float, interval_s: float, starved_s: float) -> None:
        """`elapsed_s` since the last look, which was meant to be `interval_s` ago; in that time the rank waited
        `starved_s` for a CPU."""
        if position != self.position:
            self.position, self.seconds = position, 0.0
            return
        self.seconds += max(0.0, min(elapsed_s, LATEST_TICKS * interval_s) - starved_s)


@dataclass(frozen=True, slots=True)
class RankProgress:
    """What is known of one rank when somebody asks whether it hangs."""

    rank: int
    node: int
    position: Position
    still_s: float
    limit_s: float
    usual_s: float | None = None
    process_state: str = ""
    """The kernel's letter: T stopped, D waiting for a device, R running, S waiting; empty where it is not known."""


@dataclass(frozen=True, slots=True)
class Hang:
    """The verdict: these ranks are behind and don't move."""

    culprits: tuple[RankProgress, ...]
    """In rank order; the first one speaks for all."""
    num_ranks: int

    @property
    def first(self) -> RankProgress:
        return self.culprits[0]

    def message(self) -> str:
        """One sentence for a person, without rank and host of the first culprit."""
        first = self.first
        words = f"no progress for {first.still_s:.1f} s in {PHASE_WORDS[first.position.phase]}"
        words += f" of step {first.position.step + 1}"
        words += f", where {first.usual_s:.2g} s are usual" if first.usual_s is not None else ""
        return f"{words}; {self._whose_fault()}"

    def _whose_fault(self) -> str:
        first, others = self.culprits[0], self.culprits[1:]
        state = _STATE_WORDS.get(first.process_state, "")
        if not others:
            waiting = "the others wait for it" if self.num_ranks > 1 else ""
            return "; ".join(filter(None, (state, waiting))) or "see its stack in its log"
        together = "all ranks" if len(self.culprits) == self.num_ranks else f"{len(self.culprits)} ranks"
        if first.position.is_in_collective:
            return f"{together} are in the same collective: the network, or its library"
        return f"{together} are equally far: what they share is to blame"


_STATE_WORDS = {
    "T": "its process was stopped by a signal (SIGSTOP)",
    "t": "a debugger holds its process",
    "D": "its process waits for a device or a file system, and no signal reaches it",
}


def judge(ranks: Sequence[RankProgress]) -> Hang | None:
    """Who hangs, None where nobody does: those that are behind all others, if each of them is over its limit.

    Of ranks that are equally far, those whose process is stopped or waits for a device are to blame.
    """
    living = [rank for rank in ranks if rank.position.phase is not Phase.done]
    if not living:
        return None
    behind = min(rank.position for rank in living)
    last = [rank for rank in living if rank.position == behind]
    held = [rank for rank in last if rank.process_state in _STATE_WORDS and rank.still_s > rank.limit_s]
    culprits = held or last
    if any(rank.still_s <= rank.limit_s for rank in culprits):
        return None
    return Hang(tuple(sorted(culprits, key=lambda rank: rank.rank)), len(ranks))
