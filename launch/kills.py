"""SIGKILL to ranks at moments drawn from a seed: at steps, before an attempt's first step, and inside saves."""

import os
import random
import signal
from dataclasses import dataclass
from enum import StrEnum

from launch.training import Training, rank_pid


class Moment(StrEnum):
    start = "start"
    """Before the attempt's first step."""
    step = "step"
    save = "save"
    """Between the first rank's payload and the commit."""


@dataclass(frozen=True, slots=True)
class Kill:
    moment: Moment
    rank: int
    step: int = 0

    def __str__(self) -> str:
        when = {Moment.start: "at its start", Moment.step: f"after step {self.step}", Moment.save: "inside a save"}
        return f"SIGKILL to rank {self.rank} {when[self.moment]}"


def seeded_kills(seed: int, count: int, *, steps: int, world_size: int) -> list[Kill]:
    """Of ten, six at random steps, two at starts, two at saves, in an order that a run of `steps` steps meets."""
    dice = random.Random(seed)
    others = count // 5 if count >= 10 else (count >= 3) * 1
    chosen = sorted(dice.sample(range(1, max(2, steps - 4)), min(count - 2 * others, max(1, steps - 5))))
    kills = [Kill(Moment.step, dice.randrange(world_size), step) for step in chosen]
    for moment in (Moment.start, Moment.save):
        for _ in range(others):
            kills.insert(dice.randrange(0, max(1, len(kills) * 2 // 3)), Kill(moment, dice.randrange(world_size)))
    return kills


def carry_out(kill: Kill, training: Training, after_attempt: int) -> int | None:
    """SIGKILL the rank at its moment in an attempt newer than `after_attempt`.

    Returns the attempt; None where the run ended before that moment came.
    """

    def newer() -> int | None:
        newest = training.newest_attempt()
        return newest if newest > after_attempt else None

    attempt = training.wait_for(newer)
    if attempt is None:
        return None
    log = training.folder.rank_log(attempt, kill.rank)
    pid = training.wait_for(lambda: rank_pid(log, descends_from=training.process.pid))
    if kill.moment is Moment.step:
        training.wait_for(lambda: training.has_done(kill.step, attempt))
    if kill.moment is Moment.save:
        training.wait_for(lambda: any(e["attempt"] == attempt for e in training.events("checkpoint_started")))
    if pid is None or training.process.poll() is not None:
        return None
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended by itself
        return None
    return attempt
