"""What a sweep makes of the end of a trial's process, by what the trial's own folder says."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from trials import recipe_of

from launch.compose import compose
from orchestrator.observe.ledger import Ledger
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.judge import Judge
from orchestrator.sweep.settings import SweepConfig
from orchestrator.sweep.study import Record, TrialState
from orchestrator.sweep.studylog import StudyLog


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path / "sweep")


@pytest.fixture
def log(folder: SweepFolder) -> Iterator[StudyLog]:
    log = StudyLog(folder)
    log.add("a", {"optim.lr": "1"})
    yield log
    log.close()


@pytest.fixture
def judge(folder: SweepFolder, log: StudyLog) -> Judge:
    return Judge(folder, recipe_of(compose(["experiment=tiny_test"]).config, SweepConfig(max_retries=1)), log)


def start_and_end(judge: Judge, log: StudyLog, folder: SweepFolder, *events: str) -> tuple[TrialState, int]:
    """(state, failures) after one more start of the trial, in which its driver recorded `events`."""
    trial = log.record(Record.trial_started, log.study.trials["a"], pid=1, born_s=1.0, host="here")
    ledger = Ledger(folder.trial("a").events, time.time)
    for event in events:
        ledger.append(event, 1, 7)
    ledger.close()
    ended = judge.at_end(trial, is_stopping=False)
    return ended.state, ended.failures


def test_one_that_was_told_to_leave_goes_on_whatever_its_budget(
    judge: Judge, log: StudyLog, folder: SweepFolder
) -> None:
    for _ in range(3):
        left = start_and_end(judge, log, folder, "attempt_started", "preemption_notice")
        assert left == (TrialState.interrupted, 0)


def test_one_that_dies_before_it_says_anything_has_failed_though_it_was_told_to_leave_before(
    judge: Judge, log: StudyLog, folder: SweepFolder
) -> None:
    """As on a full disk: it would be started again for ever."""
    start_and_end(judge, log, folder, "attempt_started", "preemption_notice")
    folder.log("a").parent.mkdir(parents=True)
    folder.log("a").write_text("checkpoint.url has 3 MiB free\n")
    assert start_and_end(judge, log, folder) == (TrialState.interrupted, 1)
    assert start_and_end(judge, log, folder) == (TrialState.failed, 2)
    assert log.study.trials["a"].reason == "checkpoint.url has 3 MiB free"
