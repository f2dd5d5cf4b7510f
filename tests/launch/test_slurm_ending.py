"""What a job does when its driver has ended: every case by name."""

from pathlib import Path
from typing import Any

import pytest

from launch.job.ending import (
    Conclusion,
    Ended,
    Step,
    committed_step,
    conclude,
    fruitless_jobs,
    lost_a_node,
    notice_words,
    saved_after,
    saved_words,
    slowest_save_s,
)
from launch.job.sweeping import saved_steps, trial_events
from launch.job.sweeping import saved_words as sweep_saved_words
from orchestrator.observe.ledger import Ledger
from orchestrator.runfolder import RunFolder
from orchestrator.slurm_config import SlurmRequeue

CALM = {
    "exit_code": 0,
    "notice": None,
    "was_terminated": False,
    "is_preempted": False,
    "has_lost_node": False,
    "fruitless_jobs": 0,
    "has_bad_nodes": False,
    "moves": 0,
}
LIMIT = {"exit_code": 75, "notice": "SIGUSR1"}
BAD_NODES = {"exit_code": 75, "has_bad_nodes": True, "moves": 3}
CANCELLED = {"exit_code": 75, "notice": "SIGTERM", "was_terminated": True}


@pytest.mark.parametrize(
    ("name", "facts", "step", "exit_code"),
    [
        ("finished", {}, Step.leave, 0),
        ("finished just before the limit", {"notice": "SIGUSR1"}, Step.leave, 0),
        ("failed", {"exit_code": 1}, Step.leave, 1),
        ("failed while draining", LIMIT | {"exit_code": 1}, Step.leave, 1),
        ("wrong config", {"exit_code": 2}, Step.leave, 2),
        ("told to leave by a person", {"exit_code": 75}, Step.leave, 75),
        ("time limit", LIMIT, Step.requeue, 75),
        ("time limit, then the limit itself", LIMIT | {"was_terminated": True}, Step.leave, 75),
        ("cancelled", CANCELLED, Step.leave, 75),
        ("preempted with a notice", LIMIT | {"is_preempted": True}, Step.wait, 75),
        ("preempted without one", CANCELLED | {"is_preempted": True}, Step.wait, 75),
        ("a node was lost", {"exit_code": 1, "has_lost_node": True}, Step.requeue, 75),
        ("too few good nodes", BAD_NODES | {"fruitless_jobs": 5}, Step.requeue, 75),
        ("too few good nodes again and again", BAD_NODES | {"moves": 4}, Step.leave, 1),
        ("cancelled while nodes were looked at", BAD_NODES | CANCELLED, Step.leave, 75),
        ("no checkpoint in three jobs", LIMIT | {"fruitless_jobs": 2}, Step.leave, 1),
    ],
)
def test_ends(name: str, facts: dict[str, Any], step: Step, exit_code: int) -> None:
    end = conclude(Ended(**CALM | facts), SlurmRequeue.requeue)  # type: ignore[arg-type]
    assert (end.step, end.exit_code) == (step, exit_code)


def test_policies() -> None:
    limit = Ended(**CALM | LIMIT)  # type: ignore[arg-type]
    assert conclude(limit, SlurmRequeue.chain) == Conclusion(Step.chain, 75)
    left = conclude(limit, SlurmRequeue.never)
    assert (left.step, left.exit_code) == (Step.leave, 75)
    assert "submit the run again" in str(left.why)


def event(name: str, t: float, step: int | None = None, **fields: Any) -> dict[str, Any]:
    return {"event": name, "t": t, "attempt": 1, "step": step, **fields}


def test_requeues_without_a_new_checkpoint_are_counted() -> None:
    commit, again = event("checkpoint_committed", 1.0, 5, seconds=2.0), event("requeued", 2.0, 5)
    assert fruitless_jobs([], 0) == 0
    assert fruitless_jobs([event("requeued", 0.5, 0), commit, again], 5) == 1
    assert fruitless_jobs([commit, again, again], 5) == 2
    assert fruitless_jobs([commit, again, again | {"bad_nodes": True}], 5) == 1
    assert fruitless_jobs([commit, again, again], 6) == 0
    assert committed_step([commit, event("checkpoint_committed", 3.0, 6, seconds=1.0)]) == 6


def test_what_a_sweeps_job_has_saved_is_what_its_trials_have(tmp_path: Path) -> None:
    sweep = RunFolder(tmp_path / "s")
    assert (trial_events(sweep), saved_steps([])) == ([], 0)
    for trial, (t, step) in {"s-a": (5.0, 7), "s-b": (14.2, 9), "s-c": (12.0, 3), "s-d": (1.0, None)}.items():
        (sweep.path / "trials" / trial).mkdir(parents=True)
        ledger = Ledger(sweep.path / "trials" / trial / "events.jsonl", lambda t=t: t)
        ledger.append("run_started", 0, 0)
        if step is not None:
            ledger.append("checkpoint_committed", 1, step, seconds=2.0)
        ledger.close()
    found = trial_events(sweep)
    assert saved_steps(found) == 19
    assert sweep_saved_words(found, 10.0) == "saved 2 trials in 4 s"
    assert sweep_saved_words(found, 20.0) == "nothing to save"


def test_saves() -> None:
    events = [event("checkpoint_committed", 1.0, 5, seconds=2.0), event("checkpoint_committed", 9.0, 7, seconds=4.0)]
    assert slowest_save_s(events) == 4.0
    assert slowest_save_s([]) is None
    assert saved_after(events, 5.0) == (7, 4.0)
    assert saved_after(events, 10.0) is None


def test_a_run_that_fails_by_itself_has_not_failed_for_want_of_a_node() -> None:
    lost, failed = event("node_lost", 5.0, 3, node="v2"), event("run_failed", 6.0, 3, rank=None)
    assert lost_a_node([lost, failed], 1.0)
    assert not lost_a_node([lost, failed], 5.5)
    assert not lost_a_node([lost], 1.0)
    assert not lost_a_node([lost, failed | {"rank": 1}], 1.0)


def test_the_line_that_says_it() -> None:
    saved = saved_words([event("checkpoint_committed", 109.1, 1234, seconds=8.0)], 100.0)
    line = notice_words("SIGUSR1", 178.2, saved, "requeued (restart 2)")
    assert line == "caught SIGUSR1, 178 s left, saved step 1234 in 9 s, requeued (restart 2)"
    assert (
        notice_words("SIGTERM", None, saved_words([], 1.0), "leaving") == "caught SIGTERM, nothing to save, leaving"
    )
