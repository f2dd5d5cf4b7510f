"""Where everything of a sweep lies: one folder under run.root, its trials' run folders inside. Plan half."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from orchestrator.runfolder import RunFolder


@dataclass(frozen=True, slots=True)
class SweepFolder:
    path: Path

    @property
    def sweep_id(self) -> str:
        return self.path.name

    @property
    def quoted(self) -> str:
        """The path as a shell reads it, for commands that a person copies."""
        return shlex.quote(str(self.path))

    @property
    def description(self) -> Path:
        """The base recipe, the space and the settings of the newest start."""
        return self.path / "sweep.json"

    @property
    def study(self) -> Path:
        return self.path / "study.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "sweep.html"

    @property
    def summary(self) -> Path:
        """The outcome for programs."""
        return self.path / "summary.json"

    @property
    def lock(self) -> Path:
        """Held (flock) by the live driver of the sweep."""
        return self.path / "driver.lock"

    @property
    def trials(self) -> Path:
        """run.root of the trials."""
        return self.path / "trials"

    def trial(self, trial_id: str) -> RunFolder:
        return RunFolder(self.trials / trial_id)

    def log(self, trial_id: str) -> Path:
        """What the trial's driver printed, over all its starts."""
        return self.path / "logs" / f"{trial_id}.log"

    @property
    def slurm(self) -> Path:
        """The job array's script and what its tasks print."""
        return self.path / "slurm"

    @property
    def array_script(self) -> Path:
        return self.slurm / "array.sbatch"

    @property
    def array(self) -> Path:
        """The words of the sweep, and task -> trial of all arrays so far."""
        return self.slurm / "array.json"

    def task_output(self, slurm_id: str) -> Path:
        """What a task of an array prints; `slurm_id` as in 12_3."""
        return self.slurm / f"{slurm_id}.out"

    @property
    def ray_log(self) -> Path:
        return self.path / "logs" / "ray.log"
