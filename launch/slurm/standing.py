"""What SLURM says of a run that was submitted, for `status`."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from launch.slurm import commands
from launch.slurm.commands import NoSlurmError
from launch.slurm.jobstate import JobState, JobView, job_words
from launch.slurm.record import newest_submission
from orchestrator.runfolder import RunFolder


def slurm_words(folder: RunFolder, now_s: float) -> str | None:
    """One line; None for a run that was never submitted. Raises SlurmError for a state that is not known."""
    newest = newest_submission(folder)
    if newest is None:
        return None
    try:
        view = _job(newest.slurm_id)
    except NoSlurmError:
        return f"job {newest.slurm_id}; SLURM can't be asked from this machine"
    if view is None:
        return (
            f"job {newest.slurm_id}, of which neither scontrol nor sacct knows any more: how it ended, only the "
            "run's own state says"
        )
    return job_words(view, now_s)


def slurm_json(folder: RunFolder) -> dict[str, Any] | None:
    newest = newest_submission(folder)
    if newest is None:
        return None
    try:
        view = _job(newest.slurm_id)
    except NoSlurmError:
        view = None
    return {"job_id": newest.job_id} if view is None else asdict(view)


def _job(job_id: str) -> JobView | None:
    """As slurmctld has it, or, some minutes after its end, accounting."""
    return commands.job(job_id) or commands.accounted(job_id)


def live_jobs(folders: Iterable[RunFolder]) -> Mapping[str, tuple[str, JobState]]:
    """Run folder's path -> its job that waits or runs, with SLURM asked once; empty where nothing was submitted."""
    newest = {str(folder.path): newest_submission(folder) for folder in folders}
    ids = {path: submission.slurm_id for path, submission in newest.items() if submission is not None}
    if not ids or not commands.is_there():
        return {}
    queue = commands.queue()
    return {path: (job, queue[job]) for path, job in ids.items() if job in queue}
