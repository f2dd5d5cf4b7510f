"""Suggestions follow from the records, the seed and the number: a driver that takes over goes on as the first one."""

import math

import pytest
from trials import added, ended, finished_study, started

from orchestrator.sweep.sampler import importances, suggest
from orchestrator.sweep.settings import Algorithm
from orchestrator.sweep.space import Choices, Interval, Parameters, contains
from orchestrator.sweep.study import Study, read_study

SPACE = (
    Interval("optim.lr", 1e-4, 1e-1, is_log=True),
    Interval("optim.warmup_steps", 1, 64, is_integer=True, is_log=True),
    Choices("optim", ("adamw", "sgd")),
)
SEARCHES = [a for a in Algorithm if a not in (Algorithm.grid, Algorithm.pbt)]


def objective(parameters: Parameters) -> float:
    """A bowl around lr=3e-3, 8 warm-up steps and adamw."""
    lr, warmup = float(parameters["optim.lr"]), int(parameters["optim.warmup_steps"])
    return (math.log10(lr) + 2.5) ** 2 + 0.1 * abs(math.log2(warmup) - 3) + 0.3 * (parameters["optim"] == "sgd")


def search(algorithm: Algorithm, count: int, *, seed: int = 1, maximise: bool = False) -> Study:
    study = Study()
    for number in range(count):
        trials = list(study.trials.values())
        parameters = suggest(algorithm, SPACE, trials, seed=seed, tries=0, maximise=maximise)
        value = -objective(parameters) if maximise else objective(parameters)
        for record in (added(str(number), **parameters), started(str(number)), ended(str(number), "finished", value)):
            study.apply(record)
    return study


def points(study: Study) -> list[Parameters]:
    return [trial.parameters for trial in study.trials.values()]


@pytest.mark.parametrize("algorithm", SEARCHES)
def test_the_same_records_and_seed_give_the_same_suggestions(algorithm: Algorithm) -> None:
    ours = search(algorithm, 12)
    assert points(ours) == points(search(algorithm, 12))
    assert points(ours) != points(search(algorithm, 12, seed=2))
    for trial in ours.trials.values():
        assert all(contains(dimension, trial.parameters[dimension.key]) for dimension in SPACE)


@pytest.mark.parametrize("algorithm", [Algorithm.random, Algorithm.quasi_random])
def test_points_that_learn_nothing_do_not_depend_on_results(algorithm: Algorithm) -> None:
    study = search(algorithm, 6)
    running = read_study([added(trial.id, **trial.parameters) for trial in study.trials.values()])
    following = [
        suggest(algorithm, SPACE, list(known.trials.values()), seed=1, tries=0, maximise=False)
        for known in (study, running)
    ]
    assert following[0] == following[1]


@pytest.mark.parametrize("algorithm", [Algorithm.tpe, Algorithm.gp, Algorithm.cmaes])
@pytest.mark.parametrize("maximise", [False, True])
def test_what_learns_gets_better(algorithm: Algorithm, maximise: bool) -> None:
    trials = list(search(algorithm, 40, maximise=maximise).trials.values())
    values = [objective(trial.parameters) for trial in trials]
    assert sum(values[-10:]) < sum(values[:10])


def test_trials_of_another_space_are_no_hindrance() -> None:
    study = search(Algorithm.tpe, 12)
    grown = (*SPACE[:2], Choices("optim", ("adamw", "sgd", "adam")))
    shrunk = (Interval("optim.lr", 1e-3, 1e-2), *SPACE[1:])
    for space in (grown, shrunk, SPACE[:2]):
        found = suggest(Algorithm.tpe, space, list(study.trials.values()), seed=1, tries=0, maximise=False)
        assert set(found) == {dimension.key for dimension in space}


def test_a_repeated_suggestion_is_followed_by_another() -> None:
    few = (Choices("optim.lr", ("1", "2", "3", "4", "5", "6")),)
    found = {suggest(Algorithm.random, few, [], seed=0, tries=t, maximise=False)["optim.lr"] for t in range(20)}
    assert len(found) > 3


def test_importances_name_what_matters() -> None:
    shares = importances(SPACE, list(search(Algorithm.quasi_random, 40).trials.values()), maximise=False)
    assert next(iter(shares)) == "optim.lr"
    assert sum(shares.values()) == pytest.approx(1)


def test_importances_of_too_little_are_none() -> None:
    alike = finished_study({str(n): ({"optim.lr": "0.001"}, 1.0) for n in range(5)})
    assert importances(SPACE[:1], list(alike.trials.values()), maximise=False) == {}
    assert importances(SPACE[:1], [], maximise=False) == {}
