"""Early stopping: where a trial is judged and whether it goes on. Plan half, pure.

ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, arXiv 1810.05934) compares a
trial at a rung with all that reached this rung before it, without waiting for the others. The paper pauses every
trial at a rung and promotes the best 1/eta; here the best 1/eta so far go on at once and the rest stop (the stopping
variant, as Ray Tune and Syne Tune have it), because starting a trial again costs more than a step.

Hyperband (Li et al., JMLR 2018, arXiv 1603.06560) hedges how early to stop: bracket s has s rungs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.sweep.settings import Pruner, SweepConfig


@dataclass(frozen=True, slots=True)
class Rungs:
    """How trials are judged on their way."""

    pruner: Pruner
    min_steps: int
    reduction_factor: int
    every_steps: int = 1
    """A trial has its metric at multiples of this: a rung between two of them is moved to the later one."""

    def steps(self, number: int, total_steps: int) -> tuple[int, ...]:
        """The rungs of the trial with this number, ascending, all below `total_steps`."""
        if self.pruner is Pruner.none:
            return ()
        ladder = _ladder(self.min_steps, self.reduction_factor, self.every_steps, total_steps)
        if self.pruner is Pruner.asha:
            return ladder
        return ladder[len(ladder) - bracket(number, len(ladder), self.reduction_factor) :]


def rungs_of(config: SweepConfig, total_steps: int, every_steps: int = 1) -> Rungs:
    """The config's rungs; without min_steps the first is at total_steps / reduction_factor**2."""
    least = config.min_steps or max(1, total_steps // config.reduction_factor**2)
    return Rungs(config.pruner, least, config.reduction_factor, every_steps)


def rung_problem(rungs: Rungs, all_steps: Iterable[int]) -> str | None:
    """Why no trial of `all_steps` would ever be judged, else None."""
    longest = max(all_steps)
    if rungs.pruner is Pruner.none or rungs.steps(0, longest):
        return None
    if rungs.min_steps < longest:
        return (
            f"sweep.pruner={rungs.pruner} judges by evaluations, and train.eval_every_steps={rungs.every_steps} "
            f"makes none before the end (train.steps={longest}); evaluate more often, or use sweep.metric=loss"
        )
    return (
        f"sweep.min_steps={rungs.min_steps} is no earlier than the end (train.steps={longest}), so "
        f"sweep.pruner={rungs.pruner} would judge nothing; use less, or sweep.pruner=none"
    )


def bracket(number: int, max_rungs: int, reduction_factor: int) -> int:
    """How many rungs the trial `number` has, from `max_rungs` down to 0.

    Bracket s of Hyperband has ceil((s_max + 1) / (s + 1) * eta**s) trials; trials take them in turn, the bracket
    that stops most first, so that it depends on nothing but the number.
    """
    sizes = [
        (rungs, -(-(max_rungs + 1) * reduction_factor**rungs // (rungs + 1))) for rungs in range(max_rungs, -1, -1)
    ]
    place = number % sum(size for _, size in sizes)
    for rungs, size in sizes:
        if place < size:
            return rungs
        place -= size
    raise AssertionError("a place is within the sum of the sizes")


def goes_on(trial: str, at_rung: Mapping[str, float | None], reduction_factor: int, *, maximise: bool) -> bool:
    """Whether `trial` is among the best 1/reduction_factor of those in `at_rung`, itself included.

    `at_rung`: trial -> metric at the rung, None where it was NaN or infinite. Of fewer than reduction_factor trials
    the best goes on; of equals the one that came first.
    """
    own = at_rung[trial]
    if own is None:
        return False
    sign = -1.0 if maximise else 1.0
    earlier = list(at_rung)[: list(at_rung).index(trial)]
    better = sum(
        value is not None and (sign * value < sign * own or (value == own and name in earlier))
        for name, value in at_rung.items()
        if name != trial
    )
    return better < max(1, len(at_rung) // reduction_factor)


def _ladder(min_steps: int, reduction_factor: int, every_steps: int, total_steps: int) -> tuple[int, ...]:
    steps: list[int] = []
    rung = min_steps
    while (measured := -(-rung // every_steps) * every_steps) < total_steps:
        if measured not in steps:
            steps.append(measured)
        rung *= reduction_factor
    return tuple(steps)
