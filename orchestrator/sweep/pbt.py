"""Population-based training (Jaderberg et al., "Population Based Training of Neural Networks", arXiv 1711.09846): who
takes over whose checkpoint, and with which hyperparameters. Plan half, pure.

A member trains in rounds of `interval_steps`; each round is a trial, which starts from its parent's last checkpoint.
Exploit is the paper's truncation selection: a member among the worst takes over one of the best, drawn evenly.
Explore is its perturbation by 0.8 or 1.2, or a new draw.

Ours: all members meet at the end of a round, where the paper's workers look at whatever the others have done by then.
So what is decided follows from the results and the seed, whoever is killed on the way; the price is that a round
waits for its slowest member. A listed value moves to a neighbour in its list. A member that diverged or failed is
always replaced.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from orchestrator.sweep.settings import SweepConfig
from orchestrator.sweep.space import Choices, Dimension, Parameters, Space, number_text
from orchestrator.sweep.study import ENDED, Part, Trial, TrialState

ROUNDS = 5
"""Of a run, where no interval is given."""


@dataclass(frozen=True, slots=True)
class Child:
    """A trial to be."""

    parameters: Parameters
    part: Part


def interval_steps(config: SweepConfig, total_steps: int) -> int:
    return config.interval_steps or -(-total_steps // ROUNDS)


def num_rounds(config: SweepConfig, total_steps: int) -> int:
    return -(-total_steps // interval_steps(config, total_steps))


def children(
    config: SweepConfig, space: Space, trials: Sequence[Trial], *, total_steps: int, maximise: bool
) -> list[Child]:
    """What can be added to `trials` now: members that the newest round lacks, or the next round once all of it ended.

    Empty while a round is on its way, after the last one, and where nobody is left to take over from.
    """
    rounds: dict[int, dict[int, Trial]] = {}
    for trial in trials:
        if trial.part is not None:
            rounds.setdefault(trial.part.round, {})[trial.part.member] = trial
    number = max(rounds, default=0)
    newest = rounds.get(number, {})
    if len(newest) >= config.population and all(trial.state in ENDED for trial in newest.values()):
        number += 1
    if number >= num_rounds(config, total_steps):
        return []
    steps = min(total_steps, (number + 1) * interval_steps(config, total_steps))
    missing = [member for member in range(config.population) if member not in rounds.get(number, {})]
    if number == 0:
        return [_first(space, config.seed, member, steps) for member in missing]
    return _successors(config, space, rounds[number - 1], missing, steps=steps, maximise=maximise)


def _first(space: Space, seed: int, member: int, steps: int) -> Child:
    rng = np.random.default_rng([seed, 0, member])
    parameters = {dimension.key: _drawn(dimension, rng) for dimension in space}
    return Child(parameters, Part(member=member, round=0, parent=None, steps=steps))


def _successors(
    config: SweepConfig,
    space: Space,
    before: dict[int, Trial],
    missing: Sequence[int],
    *,
    steps: int,
    maximise: bool,
) -> list[Child]:
    best, worst = selection(list(before.values()), config.exploit_fraction, maximise=maximise)
    if not best:
        return []
    found = []
    for member in missing:
        trial = before[member]
        number = 1 + _part(trial).round
        parameters = dict(trial.parameters)
        if trial in worst:
            rng = np.random.default_rng([config.seed, number, member])
            trial = best[int(rng.integers(len(best)))]
            parameters = {d.key: _explored(d, trial.parameters[d.key], config, rng) for d in space}
        found.append(Child(parameters, Part(member=member, round=number, parent=trial.id, steps=steps)))
    return found


def selection(members: Sequence[Trial], fraction: float, *, maximise: bool) -> tuple[list[Trial], list[Trial]]:
    """The best and the worst `fraction` of a round, one at least and never more than half; among the worst all that
    failed or have no value. Of equals the one with the lower member is the better."""
    sign = -1.0 if maximise else 1.0
    # One that failed on its way may have a value, but no checkpoint where the round ends.
    whole = [trial for trial in members if trial.state is TrialState.finished and trial.value is not None]
    ranked = sorted(whole, key=lambda trial: (sign * (trial.value or 0.0), _part(trial).member))
    lost = [trial for trial in members if trial not in whole]
    count = min(max(1, int(len(members) * fraction)), len(members) // 2)
    more = max(0, min(count - len(lost), len(ranked) - count))
    return ranked[:count], [*ranked[len(ranked) - more :], *lost]


def line_of(trials: dict[str, Trial], trial: Trial) -> list[Trial]:
    """The trials whose checkpoints led to `trial`, the first round first, itself last."""
    line = [trial]
    while (parent := _part(line[0]).parent) is not None and parent in trials:
        line.insert(0, trials[parent])
    return line


def _part(trial: Trial) -> Part:
    assert trial.part is not None, "a member of a population"
    return trial.part


def _drawn(dimension: Dimension, rng: np.random.Generator) -> str:
    """Evenly over the list or the interval, or over its logarithm."""
    if isinstance(dimension, Choices):
        return dimension.values[int(rng.integers(len(dimension.values)))]
    if dimension.is_integer and not dimension.is_log:
        return str(int(rng.integers(int(dimension.low), int(dimension.high) + 1)))
    if dimension.is_log:
        value = exp(rng.uniform(log(dimension.low), log(dimension.high)))
    else:
        value = rng.uniform(dimension.low, dimension.high)
    return _within(dimension.low, dimension.high, value, is_integer=dimension.is_integer)


def _explored(dimension: Dimension, text: str, config: SweepConfig, rng: np.random.Generator) -> str:
    is_new, is_up = rng.random() < config.resample_probability, rng.random() < 0.5
    if is_new:
        return _drawn(dimension, rng)
    if isinstance(dimension, Choices):
        if text not in dimension.values:
            return _drawn(dimension, rng)
        place = dimension.values.index(text) + (1 if is_up else -1)
        return dimension.values[min(max(place, 0), len(dimension.values) - 1)]
    value = float(text) * (1 + config.perturbation if is_up else 1 - config.perturbation)
    if dimension.is_integer and round(value) == round(float(text)):
        value = float(text) + (1 if is_up else -1)
    return _within(dimension.low, dimension.high, value, is_integer=dimension.is_integer)


def _within(low: float, high: float, value: float, *, is_integer: bool) -> str:
    return number_text(min(max(value, low), high), is_integer=is_integer)
