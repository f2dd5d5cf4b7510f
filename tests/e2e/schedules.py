"""Schedules of faults for real processes, each drawn from one integer: who is struck, how, and in which moment."""

import random
from dataclasses import dataclass
from enum import StrEnum

STEPS = 60
LAST_STEP = 48
"""Of a fault: it must come before the run's end, also where somebody is slow to strike."""
STAGES = (2, 3, 1, 0)


class Victim(StrEnum):
    rank = "rank"
    zygote = "zygote"
    agent = "agent"
    driver = "driver"


class How(StrEnum):
    kill = "SIGKILL"
    crash = "SIGSEGV"
    stop = "SIGSTOP"
    leave = "exit 0"
    error = "exception"


class Moment(StrEnum):
    """What a rank, or for `save` the store, is seen to be in the midst of, while the rank is held."""

    joining = "joining"
    """Forked, and not yet in a collective."""
    restoring = "restoring"
    """Building its engine with the others, or taking its state from memory; before the attempt's first step."""
    prefetch = "prefetch"
    """In an attempt's first step, while its loader reads ahead."""
    all_reduce = "all-reduce"
    snapshot = "snapshot"
    """Its memory is being copied into a slot."""
    save = "save"
    """A checkpoint is partly in storage and not committed."""


AT_STARTS = frozenset({Moment.joining, Moment.restoring, Moment.prefetch})
KINDS: list[tuple[Victim, How, int]] = [
    (Victim.rank, How.kill, 4),
    (Victim.rank, How.crash, 3),
    (Victim.rank, How.stop, 3),
    (Victim.rank, How.leave, 3),
    (Victim.rank, How.error, 3),
    (Victim.zygote, How.kill, 2),
    (Victim.agent, How.kill, 1),
    (Victim.driver, How.kill, 2),
    (Victim.driver, How.stop, 1),
]
"""With how often each is drawn."""
STOPPED_AT = (Moment.all_reduce, Moment.snapshot, Moment.save)
"""Elsewhere a stopped rank is found only after worker.start_timeout_s: how long those take is not known yet."""


@dataclass(frozen=True, slots=True)
class Fault:
    victim: Victim
    how: How
    moment: Moment
    rank: int
    """That is struck, or whose moment it is."""
    step: int
    """Not before so many steps are done; at an attempt's start it does not count."""

    def __str__(self) -> str:
        whom = f"rank {self.rank}" if self.victim is Victim.rank else f"the {self.victim}"
        when = "" if self.moment in AT_STARTS else f", step {self.step} or later"
        return f"{self.how} to {whom} in {self.moment} of rank {self.rank}{when}"


@dataclass(frozen=True, slots=True)
class Schedule:
    seed: int
    zero_stage: int
    faults: tuple[Fault, ...]


def draw(seed: int, world_size: int = 2) -> Schedule:
    """Two or three faults, the steps in order; consecutive seeds take turns with the ZeRO stages."""
    dice = random.Random(f"fault schedule {seed}")
    steps = sorted(dice.sample(range(4, LAST_STEP), dice.choice((2, 3))))
    faults = []
    for step in steps:
        ((victim, how, _),) = dice.choices(KINDS, weights=[weight for *_, weight in KINDS])
        moment = dice.choice(STOPPED_AT if how is How.stop else list(Moment))
        faults.append(Fault(victim, how, moment, dice.randrange(world_size), step))
    return Schedule(seed, STAGES[seed % len(STAGES)], tuple(faults))


def seeds_in(text: str) -> list[int]:
    """`17` or `100-149`, also several of them with commas."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


CI_SEEDS = seeds_in("0,8,24,28,36,44,48,88,100,136")
"""All at ZeRO-2, with every victim, way and moment in them."""
