"""What ranks report, recorded: also where it comes in another order than it was asked for in."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from simulated import setting

from orchestrator.agent.persist import Committed
from orchestrator.checkpoint.commit import committed_steps
from orchestrator.checkpoint.layout import MARKER, step_folder
from orchestrator.checkpoint.lineage import WHOLE
from orchestrator.checkpoint.retry import Patience
from orchestrator.checkpoint.store import Store
from orchestrator.config import BestMetric
from orchestrator.control.attempt import Attempt
from orchestrator.control.chronicle import Chronicle
from orchestrator.control.claiming import claim_attempt
from orchestrator.control.clock import SYSTEM_CLOCK
from orchestrator.control.commits import MAX_PENDING, Commits
from orchestrator.control.opening import OpenRun
from orchestrator.control.reports import Reports
from orchestrator.control.stragglers import StragglerWatch
from orchestrator.observe.console import Console
from orchestrator.observe.ledger import read_events
from orchestrator.observe.tracking import NullTracker
from orchestrator.runfolder import RunFolder
from orchestrator.simulate.files import MemoryFiles
from orchestrator.simulate.saving import COUNTERS, Payloads
from orchestrator.simulate.trained import Trained
from orchestrator.spec import ResumePoint

STEPS = 20


@dataclass
class Driver:
    """What hears the ranks of one attempt, whose files are in memory."""

    run: OpenRun
    files: MemoryFiles
    store: Store
    reports: Reports
    attempt: Attempt

    def hear_saved(self, step: int) -> None:
        """By every rank."""
        size, number = self.attempt.world_size, self.attempt.number
        for rank, payload in Payloads(size).write(self.files, range(size), number, Trained(step, 0)):
            said = {"kind": "saved", "step": step, "rank": rank, "payload": payload, "counters": COUNTERS}
            self.reports.hear(self.attempt, {**said, "seconds": 1.0, "is_last": step == STEPS})

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.run.folder.events) if event["event"] == kind]


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    with contextlib.ExitStack() as stack:

        def make(on_put: Callable[[str, bytes], None] = lambda path, data: None, **checkpoint: Any) -> Driver:
            at = setting().with_steps(STEPS, save_every=10)
            config = replace(at.config, checkpoint=replace(at.config.checkpoint, **checkpoint))
            run = OpenRun(config, at.plan, at.manifest, RunFolder(tmp_path), "simulated://store", False)
            files = MemoryFiles(on_put)
            store, ranks = Store(run.checkpoint_url, files=files), at.placement.ranks
            silence = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123
            console = Console(silence, False, every_steps=1)
            chronicle = Chronicle(run.folder, console, NullTracker(), 1, driver_started_s=0.0)
            stack.callback(chronicle.close, 0)
            reports = Reports(run, store, chronicle, SYSTEM_CLOCK)
            stack.callback(reports.close)
            claim = claim_attempt(run, store)
            reports.begin(claim, WHOLE)
            attempt = Attempt(claim.attempt, ResumePoint(), len(ranks), 0.0, StragglerWatch(0))
            return Driver(run, files, store, reports, attempt)

        yield make


def test_a_last_checkpoint_that_is_faster_than_the_one_before_it_stays_the_newest(driver) -> None:
    one = driver()
    for step in (STEPS, 10):
        one.hear_saved(step)
    one.reports.settle()
    assert one.reports.committed_step == STEPS
    assert one.reports.last_checkpoint == one.store.where(step_folder(STEPS))


def test_where_storage_takes_no_marker_only_so_many_checkpoints_wait_for_theirs(driver) -> None:
    """Files arrive: the ranks go on to the next one. The run's last one waits all the same."""
    is_open = threading.Event()

    def on_put(path: str, data: bytes) -> None:
        if path.endswith(MARKER):
            is_open.wait()

    one = driver(on_put, keep_last=0)
    for step in range(1, MAX_PENDING + 4):
        one.hear_saved(step)
    one.hear_saved(STEPS)
    skipped = [event["step"] for event in one.events("checkpoint_failed")]
    is_open.set()
    one.reports.settle()
    assert skipped == [MAX_PENDING + 1, MAX_PENDING + 2, MAX_PENDING + 3]
    assert committed_steps(one.store) == [*range(1, MAX_PENDING + 1), STEPS]
    assert one.reports.committed_step == STEPS


def test_evaluations_that_cannot_be_read_cost_retention_and_not_the_checkpoint(driver) -> None:
    one = driver(keep_best=1, best_metric=BestMetric.eval_loss)
    one.run.folder.metrics.unlink(missing_ok=True)
    one.run.folder.metrics.mkdir()
    one.hear_saved(STEPS)
    one.reports.settle()
    assert not one.reports.is_committing(STEPS)
    (event,) = one.events("checkpoint_committed")
    assert "directory" in event["prune_failure"].lower()


def test_a_commit_that_breaks_is_told_as_a_failure_and_not_waited_for(driver) -> None:
    """Else a run that has done its last step would wait for ever."""
    one = driver()

    def break_it() -> Committed:
        raise LookupError("a bug")

    commits = Commits(one.store, SYSTEM_CLOCK)
    commits.begin(one.attempt, STEPS, [], break_it, Patience(0.0))
    commits.settle()
    (outcome,) = commits.finished()
    assert "LookupError('a bug')" in str(outcome.error)
    assert not commits.is_pending(STEPS)
    commits.close()
