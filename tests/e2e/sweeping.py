"""A sweep's folder as tests look at it: its study, its trials as runs, the processes to kill."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from comparing import final_digest, learned
from typed import Driver, Run

from orchestrator.observe.jsonlines import read_records
from orchestrator.processes import named
from orchestrator.runfolder import RunFolder
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.study import Study, Trial, TrialState, read_study


@dataclass
class TrialRun(Run):
    """One trial's run folder; `root` is the folder itself."""

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.root)

    @property
    def has_folder(self) -> bool:
        return self.root.is_dir()


@dataclass
class Sweep:
    """A sweep's folder to be: the one folder under `root`."""

    root: Path

    @property
    def folder(self) -> SweepFolder:
        (path,) = [path for path in self.root.iterdir() if path.is_dir()]
        return SweepFolder(path)

    def records(self) -> list[dict[str, Any]]:
        has_folder = self.root.is_dir() and any(self.root.iterdir())
        return list(read_records(self.folder.study)) if has_folder else []

    def study(self) -> Study:
        return read_study(self.records())

    def run(self, trial: Trial) -> TrialRun:
        return TrialRun(self.folder.trial(trial.id).path)

    def summary(self) -> dict[str, Any]:
        return dict(json.loads(self.folder.summary.read_text()))

    def trial_within(self, driver: Driver, low: int, high: int) -> Trial:
        """Wait for a running trial whose newest attempt has done `low` steps or more, and not yet `high`.

        One that this driver has started: what the study says of those that an earlier one started is not yet news,
        nor is the death of a process that was killed just now.
        """

        def look() -> Trial | None:
            own = running_children(driver)
            for trial in self.study().in_state(TrialState.running):
                if self.trial_pid(trial) not in own:
                    continue
                row = self.run(trial).newest_row()
                if row and low <= row.step < high and row.attempt == self.run(trial).newest_attempt():
                    return trial
            return None

        return driver.wait_for(f"a trial between steps {low} and {high}", look)

    def trial_pid(self, trial: Trial) -> int:
        """Of the process that it was started in last."""
        starts = [record for record in self.records() if record["event"] == "trial_started"]
        return next(int(record["pid"]) for record in reversed(starts) if record["trial"] == trial.id)


def running_children(driver: Driver) -> set[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(driver.process.pid).children()
        return {child.pid for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE}
    return set()


def ray_process(driver: Driver, name: str) -> psutil.Process:
    """A process of the Ray that the sweep started: `raylet` or `gcs_server`."""
    ((found, _),) = named(psutil.Process(driver.process.pid).children(recursive=True), (name,))
    return found


def assert_same_sweep(ours: Sweep, reference: Sweep) -> None:
    """The same trials, each with the same history to the last bit, and the same best one."""
    study, other = ours.study(), reference.study()
    assert [trial.id for trial in study.trials.values()] == [trial.id for trial in other.trials.values()]
    for trial in study.trials.values():
        twin = other.trials[trial.id]
        assert (trial.state, trial.value, trial.parameters) == (twin.state, twin.value, twin.parameters)
        assert trial.state is TrialState.finished
        rows, others = ours.run(trial).rows(), reference.run(twin).rows()
        assert [learned(row) for row in rows.values()] == [learned(row) for row in others.values()]
    best = ours.summary()["best"]["id"]
    assert best == reference.summary()["best"]["id"]
    assert final_digest(ours.run(study.trials[best])) == final_digest(reference.run(other.trials[best]))
