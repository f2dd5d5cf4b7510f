"""The newest job of a run: the one that is recorded, or one of which only SLURM knows.

Whoever submits may be killed between SLURM's answer and the record. SLURM keeps the path of the script that a job is
made of, and each run and each sweep has a script of its own: by that its job is found while it waits. A job that
starts writes itself down (launch/job/batch.py).
"""

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
        for job in made_of(folder.job_script, commands.queue()):
            return job, commands.job(job)
    return None if newest is None else (newest.slurm_id, view)


def made_of(script: Path, queue: Mapping[str, QueuedJob]) -> dict[str, JobState]:
    """The jobs of `queue` that were submitted with `script`, and tasks of arrays as 12_3."""
    wanted = script.resolve()
    scripts = {job.script for job in queue.values()}
    same = {text for text in scripts if Path(text).name == script.name and Path(text).resolve() == wanted}
    return {name: job.state for name, job in queue.items() if job.script in same}
