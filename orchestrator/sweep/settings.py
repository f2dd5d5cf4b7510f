"""SweepConfig: how a search space is searched. `sweep=NAME` picks a file of conf/sweep, `sweep.KEY=VALUE` sets a
field. Plan half."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.validate import MAX_NAME_LENGTH, name_problem

TRIAL_SUFFIX = 20
"""A trial's id is the sweep's and at most so much: `-m123r1234-1f0c9a3e`."""


class Algorithm(StrEnum):
    grid = "grid"
    """Every combination of the listed values."""
    random = "random"
    quasi_random = "quasi_random"
    """Scrambled Sobol points: they cover the space more evenly than random ones."""
    tpe = "tpe"
    """Multivariate Tree-structured Parzen Estimator."""
    gp = "gp"
    """Bayesian optimisation with a Gaussian process."""
    cmaes = "cmaes"
    """Covariance Matrix Adaptation, for numbers only; a listed value is drawn at random."""
    pbt = "pbt"
    """Population-based training: values change while a population trains, by handing checkpoints on."""


class Pruner(StrEnum):
    none = "none"
    asha = "asha"
    """Asynchronous successive halving: at each rung only the best 1/reduction_factor go on."""
    hyperband = "hyperband"
    """Several brackets of successive halving, from early stopping to none."""


class Metric(StrEnum):
    loss = "loss"
    """Training loss, the mean over `window_steps`."""
    eval_loss = "eval_loss"
    """Validation loss of the last evaluation (train.eval_every_steps)."""
    eval_bits_per_byte = "eval_bits_per_byte"
    """As eval_loss, and comparable between tokenizers."""
    tokens_per_s = "tokens_per_s"
    """Speed, the mean over `window_steps`; maximised."""


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    id: str | None = None
    """Names the sweep's folder under run.root; null: the recipe's name and a hash of the algorithm and the keys
    that are swept, so that new values of the same keys extend the same sweep."""
    algorithm: Algorithm | None = None
    """null: grid where every dimension lists its values, else tpe."""
    trials: int = 20
    """How many trials in all; a grid has as many as its values make."""
    metric: Metric | None = None
    """null: eval_loss where the recipe evaluates, else loss."""
    window_steps: int = 10
    """Steps whose mean is the training loss or the speed of a trial."""
    pruner: Pruner = Pruner.none
    reduction_factor: int = 3
    """At a rung one in so many goes on; the next rung has so many times the steps."""
    min_steps: int | None = None
    """Steps of the first rung; null: train.steps / reduction_factor**2."""
    max_concurrent: int | None = None
    """Trials at a time; null: as many as fit the cluster."""
    max_retries: int = 2
    """How often a trial that failed is started again, over all starts of the sweep."""
    population: int = 8
    """pbt: how many members train at the same time, or one after the other where they don't fit."""
    interval_steps: int | None = None
    """pbt: steps after which the members are compared; null: a fifth of train.steps."""
    exploit_fraction: float = 0.2
    """pbt: so many of the worst members take over one of so many best."""
    perturbation: float = 0.2
    """pbt: a number that is taken over becomes so much larger or smaller."""
    resample_probability: float = 0.25
    """pbt: how often a value that is taken over is drawn anew instead."""
    seed: int = 0
    """Of the suggestions; the trials' own seed is run.seed."""
    space: dict[str, Any] = field(default_factory=dict)
    """Key -> values in Hydra's grammar, for files of conf/sweep; on the command line: KEY=choice(...)."""


def setting_problems(config: SweepConfig) -> list[str]:
    """One sentence for each value out of its range."""
    least = {
        "trials": 1,
        "window_steps": 1,
        "reduction_factor": 2,
        "min_steps": 1,
        "max_concurrent": 1,
        "max_retries": 0,
        "population": 2,
        "interval_steps": 1,
        "seed": 0,
    }
    found = []
    if config.id is not None and (problem := name_problem("sweep.id", config.id, MAX_NAME_LENGTH - TRIAL_SUFFIX)):
        found.append(problem)
    for name, minimum in least.items():
        value = getattr(config, name)
        if value is not None and value < minimum:
            found.append(f"sweep.{name}={value} is too small; use sweep.{name}={minimum} or more")
    for name, low, high in (
        ("exploit_fraction", 0.0, 0.5),
        ("perturbation", 0.0, 1.0),
        ("resample_probability", 0, 1),
    ):
        value = getattr(config, name)
        if not low <= value <= high:
            found.append(f"sweep.{name}={value:g} is out of range; use {low:g} to {high:g}")
    if config.algorithm is Algorithm.pbt and config.pruner is not Pruner.none:
        found.append(
            f"sweep.pruner={config.pruner} stops trials and sweep.algorithm=pbt replaces them: use sweep.pruner=none"
        )
    return found


def is_maximised(metric: Metric) -> bool:
    return metric is Metric.tokens_per_s
