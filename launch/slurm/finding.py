"""The newest job of a run: the one that is recorded, or one of which only SLURM knows.

Whoever submits may be killed between SLURM's answer and the record. SLURM keeps the path of the script that a job is
made of, and each run and each sweep has a script of its own: by that its job is found while it waits. A job that
starts writes itself down (launch/job/batch.py).
"""

import os
from collections.abc import Mapping
from pathlib import Path

from launch.slurm import commands
from launch.slurm.jobstate import JobState, JobView, QueuedJob
from launch.slurm.record import newest_submission
from orchestrator.runfolder import RunFolder


def newest_job(folder: RunFolder) -> tuple[str, JobView | None] | None:
    """(its id as SLURM's commands take it, the job as slurmctld has it); None for a run that is no job.

    Raises SlurmError; NoSlurmError where the run was submitted and SLURM can't be asked.
    """
    newest = newest_submission(folder)
    view = commands.job(newest.slurm_id) if newest else None
    if (view is None or view.state.is_end) and folder.job_script.exists():
        for job in made_of(folder.job_script, by_script(commands.queue())):
            return job, commands.job(job)
    return None if newest is None else (newest.slurm_id, view)


Scripts = Mapping[str, Mapping[str, JobState]]
"""Real path of a script -> the queued jobs that were submitted with it, and tasks of arrays as 12_3."""


def by_script(queue: Mapping[str, QueuedJob]) -> Scripts:
    """A relative path names nothing: the folder in which it was typed need not be ours."""
    real = {
        text: os.path.realpath(text) for text in {job.script for job in queue.values()} if Path(text).is_absolute()
    }
    found: dict[str, dict[str, JobState]] = {}
    for name, job in queue.items():
        if job.script in real:
            found.setdefault(real[job.script], {})[name] = job.state
    return found


def made_of(script: Path, scripts: Scripts) -> Mapping[str, JobState]:
    """The jobs that were submitted with `script`."""
    return scripts.get(os.path.realpath(script), {})
