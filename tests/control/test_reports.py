"""What ranks report, recorded: also where it comes in another order than it was asked for in."""

import os
from pathlib import Path

from simulated import setting

from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.lineage import WHOLE
from orchestrator.checkpoint.store import Store
from orchestrator.control.attempt import Attempt
from orchestrator.control.chronicle import Chronicle
from orchestrator.control.claiming import claim_attempt
from orchestrator.control.clock import SYSTEM_CLOCK
from orchestrator.control.opening import OpenRun
from orchestrator.control.reports import Reports
from orchestrator.control.stragglers import StragglerWatch
from orchestrator.observe.console import Console
from orchestrator.observe.tracking import NullTracker
from orchestrator.runfolder import RunFolder
from orchestrator.simulate.files import MemoryFiles
from orchestrator.simulate.saving import COUNTERS, Payloads
from orchestrator.simulate.trained import Trained
from orchestrator.spec import ResumePoint

STEPS = 20


def test_a_last_checkpoint_that_is_faster_than_the_one_before_it_stays_the_newest(tmp_path: Path) -> None:
    at = setting().with_steps(STEPS, save_every=10)
    run = OpenRun(at.config, at.plan, at.manifest, RunFolder(tmp_path), "simulated://store", False)
    files = MemoryFiles(lambda path, data: None)
    store, ranks = Store(run.checkpoint_url, files=files), at.placement.ranks
    with open(os.devnull, "w") as silence:  # noqa: PTH123
        chronicle = Chronicle(
            run.folder, Console(silence, False, every_steps=1), NullTracker(), 1, driver_started_s=0.0
        )
        reports = Reports(run, store, chronicle, SYSTEM_CLOCK)
        claim = claim_attempt(run, store)
        reports.begin(claim, WHOLE)
        attempt = Attempt(claim.attempt, ResumePoint(), len(ranks), 0.0, StragglerWatch(0))
        payloads = Payloads(len(ranks))
        for step in (STEPS, 10):
            for rank, payload in payloads.write(files, range(len(ranks)), claim.attempt, Trained(step, 0)):
                said = {"kind": "saved", "step": step, "rank": rank, "payload": payload, "counters": COUNTERS}
                reports.hear(attempt, {**said, "seconds": 1.0, "is_last": step == STEPS})
        reports.settle()
        assert reports.committed_step == STEPS
        assert reports.last_checkpoint == store.where(step_folder(STEPS))
        chronicle.close(0)
