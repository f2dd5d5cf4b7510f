"""What a sweep's driver is told of what is trained, and of who watches. Plan half: values and signatures only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.config import RunConfig
from orchestrator.observe.metrics import StepRow
from orchestrator.sweep.pbt import Child
from orchestrator.sweep.pruning import Rungs
from orchestrator.sweep.settings import Metric, SweepConfig
from orchestrator.sweep.space import Parameters
from orchestrator.sweep.study import Study, Trial

REPEATS = 20
"""After so many suggestions in a row that are there already the space counts as searched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    settings: SweepConfig
    metric: Metric
    rungs: Rungs
    base: RunConfig
    """With the first trial's parameters: which Ray to join."""
    min_cpus: int
    """Of the largest trial, for a Ray that is started here."""
    listed: Sequence[Parameters]
    """All trials of a grid; empty for the other algorithms."""
    corners: Sequence[Parameters]
    """Trials that must fit the cluster before anything starts."""
    compose: Callable[[Parameters], RunConfig]
    """Raises ConfigError where the parameters make no run."""
    config: Callable[[Trial], RunConfig]
    """The same of a trial that is there, with what its place in a population adds."""
    command: Callable[[Trial], list[str]]
    suggest: Callable[[Sequence[Trial], int], Parameters | None]
    """(all trials so far, tries) -> the next trial's parameters, None where there are enough."""
    breed: Callable[[Sequence[Trial]], Sequence[Child]]
    """All trials so far -> members of a population to add now; empty for the other algorithms."""


def new_parameters(
    recipe: Recipe, known: Mapping[str, Trial], id_of: Callable[[Parameters], str]
) -> Parameters | None:
    """The next suggestion that is not a trial yet; None where the space counts as searched."""
    trials = list(known.values())
    for tries in range(REPEATS):
        parameters = recipe.suggest(trials, tries)
        if parameters is None or id_of(parameters) not in known:
            return parameters
    return None


class Watcher(Protocol):
    """Who shows a sweep to a person."""

    def note(self, text: str) -> None: ...
    def trial(self, trial: Trial, words: str) -> None: ...
    def progress(self, study: Study, rows: Mapping[str, StepRow], steps: Mapping[str, int]) -> None: ...
