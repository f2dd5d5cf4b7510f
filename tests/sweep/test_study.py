"""The fold of study.jsonl: what a driver that takes over knows, and what the end of a process means."""

import pytest
from trials import added, ended, finished_study, judged, started

from orchestrator.observe.state import RunState
from orchestrator.sweep.study import Outcome, Trial, TrialState, is_startable, outcome, read_study, trial_id


def test_a_trials_life() -> None:
    records = [
        added("a", lr="1"), started("a"), judged("a", 5, 3.0, goes_on=True), ended("a", "interrupted", 2.5, 9),
        started("a"), ended("a", "finished", 2.0, 20),
    ]  # fmt: skip
    [trial] = read_study(records).trials.values()
    assert (trial.state, trial.starts, trial.step, trial.value) == (TrialState.finished, 2, 20, 2.0)
    assert trial.rungs == {5: 3.0}
    assert trial.parameters == {"lr": "1"}


@pytest.mark.parametrize("cut", range(7))
def test_every_beginning_of_the_file_is_a_study(cut: int) -> None:
    records = [
        added("a", lr="1"), added("b", lr="2"), started("a"), started("b"),
        judged("b", 5, 9.0, goes_on=False), ended("b", "pruned", 9.0, 6), ended("a", "finished", 1.0),
    ]  # fmt: skip
    study = read_study(records[:cut])
    assert len(study.trials) == min(cut, 2)
    if cut >= 5:
        assert study.trials["b"].is_condemned
        assert not is_startable(study.trials["b"], 2)


def test_records_about_unknown_trials_and_of_newer_versions_change_nothing() -> None:
    study = read_study([started("who"), added("a"), {"event": "promoted", "trial": "a"}])
    assert study.trials["a"].state is TrialState.waiting


def test_who_came_first_to_a_rung_is_kept() -> None:
    records = [added("a"), added("b"), judged("b", 5, 1.0, goes_on=True), judged("a", 5, 1.0, goes_on=False)]
    assert list(read_study(records).judged[5]) == ["b", "a"]


def test_the_best_is_of_those_that_finished() -> None:
    study = finished_study({"a": ({}, 2.0), "b": ({}, 1.0), "c": ({}, None), "d": ({}, 1.0)})
    study.apply(added("e"))
    study.apply(ended("e", "pruned", 0.1))
    best, worst = study.best(maximise=False), study.best(maximise=True)
    assert best is not None
    assert worst is not None
    assert (best.id, worst.id) == ("b", "a")
    assert read_study([]).best(maximise=False) is None


def test_an_id_follows_from_the_parameters_alone() -> None:
    one = trial_id("s", {"a": "1", "b": "2"})
    assert one == trial_id("s", {"b": "2", "a": "1"})
    assert one != trial_id("s", {"a": "1", "b": "3"})
    assert one != trial_id("t", {"a": "1", "b": "2"})


def trial(step: int = 0, failures: int = 0, *, is_condemned: bool = False) -> Trial:
    return Trial(id="a", number=0, parameters={}, step=step, failures=failures, is_condemned=is_condemned)


INTERRUPTED, FAILED = Outcome(TrialState.interrupted), Outcome(TrialState.failed, is_failure=True)
RETRIED = Outcome(TrialState.interrupted, is_failure=True)


@pytest.mark.parametrize(
    ("run", "of", "step", "is_stopping", "expected"),
    [
        (RunState.finished, trial(), 20, False, Outcome(TrialState.finished)),
        (RunState.finished, trial(is_condemned=True), 20, True, Outcome(TrialState.finished)),
        (RunState.preempted, trial(is_condemned=True), 7, True, Outcome(TrialState.pruned)),
        (RunState.preempted, trial(), 7, False, INTERRUPTED),
        (RunState.interrupted, trial(), 7, False, INTERRUPTED),  # killed, but it had got further
        (RunState.interrupted, trial(step=7), 7, False, RETRIED),  # killed again at the same step
        (RunState.interrupted, trial(step=7), 7, True, INTERRUPTED),  # with its Ray: no fault of its own
        (RunState.failed, trial(), 7, False, RETRIED),
        (RunState.failed, trial(failures=1), 7, False, RETRIED),
        (RunState.failed, trial(failures=2), 7, False, FAILED),
    ],
)
def test_what_the_end_of_a_process_means(
    run: RunState, of: Trial, step: int, is_stopping: bool, expected: Outcome
) -> None:
    assert outcome(run, of, step=step, is_stopping=is_stopping, max_retries=2) == expected


def test_a_larger_budget_starts_a_failed_trial_again() -> None:
    failed = read_study([added("a"), ended("a", "failed"), ended("a", "failed"), ended("a", "failed")]).trials["a"]
    assert not is_startable(failed, 2)
    assert is_startable(failed, 3)


def test_a_refused_suggestion_is_never_started() -> None:
    refused = read_study([added("a"), {"event": "trial_refused", "trial": "a", "reason": "no"}]).trials["a"]
    assert refused.state is TrialState.failed
    assert not is_startable(refused, 99)
