"""Where everything of a run lies (contract, DESIGN section 5). One place makes paths. Plan half: no disk access."""

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def quoted(self) -> str:
        """The path as a shell reads it, for commands that a person copies."""
        return shlex.quote(str(self.path))

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def overrides(self) -> Path:
        return self.path / "overrides.yaml"

    @property
    def recipe(self) -> Path:
        """The config without what was typed."""
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def ds_config(self) -> Path:
        return self.path / "ds_config.json"

    @property
    def env(self) -> Path:
        return self.path / "env.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def branches(self) -> Path:
        """One line for each rollback; none: there was none."""
        return self.path / "branches.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def lock(self) -> Path:
        """Held (flock) by the live driver."""
        return self.path / "driver.lock"

    @property
    def agents(self) -> Path:
        """The name by which Ray knows this run's agents."""
        return self.path / "agents.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def report_md(self) -> Path:
        return self.path / "report.md"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def slurm(self) -> Path:
        """What `phalanx submit` writes, and what its jobs print."""
        return self.path / "slurm"

    @property
    def job_script(self) -> Path:
        return self.slurm / "job.sbatch"

    @property
    def job_spec(self) -> Path:
        return self.slurm / "job.json"

    @property
    def jobs(self) -> Path:
        """A line for each job that the run was submitted as."""
        return self.slurm / "jobs.jsonl"

    @property
    def bad_nodes(self) -> Path:
        """Nodes that a job's preflight found bad, a line each; later jobs leave them out."""
        return self.path / "bad_nodes.txt"

    def job_output(self, job: int | str) -> Path:
        """`%j` for sbatch's own pattern."""
        return self.slurm / f"{job}.out"

    def attempt(self, attempt: int) -> Path:
        return self.path / f"attempt_{attempt:03d}"

    def rank_log(self, attempt: int, rank: int) -> Path:
        return self.attempt(attempt) / f"rank_{rank:05d}.log"
