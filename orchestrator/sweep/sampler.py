"""Optuna: suggestions and importances. The only file that imports optuna.

Nothing of Optuna's is kept on disk: each suggestion follows from the study's own records, the seed and the trial's
number, so a driver that takes over suggests what its predecessor would have.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import TrialState as OptunaState

from orchestrator.sweep.settings import Algorithm
from orchestrator.sweep.space import Choices, Dimension, Parameters, Space, contains, number_text
from orchestrator.sweep.study import Trial, TrialState

SEED_STRIDE = 1_000_003
"""Keeps the seeds of one sweep's trials apart from those of another with a near seed."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


def suggest(
    algorithm: Algorithm, space: Space, trials: Sequence[Trial], *, seed: int, tries: int, maximise: bool
) -> Parameters:
    """Parameters of the next trial, after `trials` (in the order of their numbers).

    `tries`: how often this trial was suggested before and found to be there already. Random and quasi-random
    points do not depend on results; the others learn from all that had ended.
    """
    number = len(trials) + tries
    usable = [trial for trial in trials if _is_usable(trial, space)]
    study = _new_study(maximise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if algorithm is Algorithm.quasi_random:
            return _point(study, space, seed, number)
        if algorithm is Algorithm.cmaes:
            _replay(study, space, usable, seed)
        else:
            for trial in usable:
                study.add_trial(_frozen(trial, space))
        study.sampler = _sampler(algorithm, seed * SEED_STRIDE + number)
        return _asked(study, space)


def importances(space: Space, trials: Sequence[Trial], *, maximise: bool) -> dict[str, float]:
    """Key -> share of the variance it explains (PED-ANOVA, arXiv 2304.10255), largest first; sums to 1.

    Empty where there are too few finished trials, or they are all alike.
    """
    study = _new_study(maximise)
    finished = [trial for trial in trials if trial.state is TrialState.finished and _is_usable(trial, space)]
    study.add_trials([_frozen(trial, space) for trial in finished])
    values = {trial.value for trial in finished if trial.value is not None}
    if len(finished) < 4 or len(values) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study)
    return {key: float(share) for key, share in found.items()}


def _new_study(maximise: bool) -> optuna.Study:
    return optuna.create_study(direction="maximize" if maximise else "minimize")


def _sampler(algorithm: Algorithm, seed: int) -> BaseSampler:
    made: dict[Algorithm, Callable[[], BaseSampler]] = {
        Algorithm.random: lambda: optuna.samplers.RandomSampler(seed=seed),
        # constant_liar: several trials run at a time, and the next must not repeat one of them.
        Algorithm.tpe: lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
        Algorithm.gp: lambda: optuna.samplers.GPSampler(seed=seed, deterministic_objective=False),
        Algorithm.cmaes: lambda: optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
    }
    return made[algorithm]()


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {dimension.key: _distribution(dimension) for dimension in space}


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.values)
    if dimension.is_integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.is_log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.is_log)


def _asked(study: optuna.Study, space: Space) -> Parameters:
    asked = study.ask(_distributions(space))
    return {dimension.key: _text(dimension, asked.params[dimension.key]) for dimension in space}


def _text(dimension: Dimension, value: Any) -> str:
    return str(value) if isinstance(dimension, Choices) else number_text(value, is_integer=dimension.is_integer)


def _point(study: optuna.Study, space: Space, seed: int, number: int) -> Parameters:
    """The `number`-th point of the sequence. A first, finished trial tells the sampler what the space is."""
    study.sampler = optuna.samplers.QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)
    distributions = _distributions(space)
    first = {key: _any_value(distribution) for key, distribution in distributions.items()}
    study.add_trial(optuna.create_trial(params=first, distributions=distributions, value=0.0))
    for _ in range(number):
        study.ask(distributions)
    return _asked(study, space)


def _any_value(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return distribution.low


def _replay(study: optuna.Study, space: Space, trials: Sequence[Trial], seed: int) -> None:
    """CMA-ES keeps its state in the trials that it suggested: let it suggest and learn again in the same order."""
    asked: list[optuna.Trial] = []
    told: set[str] = set()
    for place, trial in enumerate(trials):
        _tell(study, trials[:place], asked, told, before=trial.number)
        study.sampler = _sampler(Algorithm.cmaes, seed * SEED_STRIDE + trial.number)
        study.enqueue_trial(_values(trial, space))
        asked.append(study.ask(_distributions(space)))
    _tell(study, trials, asked, told, before=None)


def _tell(
    study: optuna.Study, trials: Sequence[Trial], asked: Sequence[optuna.Trial], told: set[str], *, before: int | None
) -> None:
    """Tell the results that were known when the trial `before` was suggested; None: all."""
    for trial, handle in zip(trials, asked, strict=True):
        has_ended = trial.ended_before is not None and (before is None or trial.ended_before <= before)
        if has_ended and trial.id not in told:
            told.add(trial.id)
            state = _STATES[trial.state] if trial.value is not None else OptunaState.FAIL
            study.tell(handle, trial.value if state is OptunaState.COMPLETE else None, state=state)


_STATES = {
    TrialState.waiting: OptunaState.RUNNING,
    TrialState.running: OptunaState.RUNNING,
    TrialState.interrupted: OptunaState.RUNNING,
    TrialState.finished: OptunaState.COMPLETE,
    TrialState.pruned: OptunaState.PRUNED,
    TrialState.failed: OptunaState.FAIL,
}


def _frozen(trial: Trial, space: Space) -> optuna.trial.FrozenTrial:
    state = _STATES[trial.state]
    if state is OptunaState.COMPLETE and trial.value is None:
        state = OptunaState.FAIL  # it diverged: nothing to learn but that
    return optuna.create_trial(
        state=state,
        params=_values(trial, space),
        distributions=_distributions(space),
        value=trial.value if state is OptunaState.COMPLETE else None,
        intermediate_values={step: value for step, value in trial.rungs.items() if value is not None},
    )


def _values(trial: Trial, space: Space) -> dict[str, Any]:
    """The parameters as Optuna has them: texts of lists, numbers of intervals."""
    found: dict[str, Any] = {}
    for dimension in space:
        text = trial.parameters[dimension.key]
        if isinstance(dimension, Choices):
            found[dimension.key] = text
        else:
            found[dimension.key] = int(text) if dimension.is_integer else float(text)
    return found


def _is_usable(trial: Trial, space: Space) -> bool:
    """Whether the space, which may have grown or shrunk since, could have given this trial."""
    keys = {dimension.key for dimension in space}
    return keys == set(trial.parameters) and all(contains(d, trial.parameters[d.key]) for d in space)
