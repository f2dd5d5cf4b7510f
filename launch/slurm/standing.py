"""What SLURM says of a run that was submitted, for `status`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from launch.slurm import commands
from launch.slurm.commands import NoSlurmError
from launch.slurm.finding import by_script, made_of, newest_job
from launch.slurm.jobstate import JobState, QueuedJob, SlurmError, job_words
from launch.slurm.record import id_fields, newest_submission
from orchestrator.runfolder import RunFolder


def slurm_words(folder: RunFolder, now_s: float) -> str | None:
    """One line; None for a run that was never submitted. Raises SlurmError for a state that is not known."""
    newest = newest_submission(folder)
    try:
        found = newest_job(folder)
        if found is None:
            return None
        view = found[1] or commands.accounted(found[0])
    except NoSlurmError:
        return None if newest is None else f"job {newest.slurm_id}; SLURM can't be asked from this machine"
    if view is None:
        return (
            f"job {found[0]}, of which neither scontrol nor sacct knows any more: how it ended, only the "
            "run's own state says"
        )
    return job_words(view, now_s)


def slurm_json(folder: RunFolder) -> dict[str, Any] | None:
    newest = newest_submission(folder)
    found, view = None, None
    try:
        found = newest_job(folder)
        view = found and (found[1] or commands.accounted(found[0]))
    except NoSlurmError:
        pass
    if found is None or view is None:
        return None if newest is None else id_fields(newest.slurm_id)
    return asdict(view) | id_fields(found[0])


Ask = Callable[[], Mapping[str, QueuedJob]]
"""squeue's answer. Raises SlurmError."""


def once() -> Ask:
    """Its first answer, or error, for all that ask: a controller that is gone takes minutes each time."""
    first: tuple[Mapping[str, QueuedJob], SlurmError | None] | None = None

    def ask() -> Mapping[str, QueuedJob]:
        nonlocal first
        if first is None:
            try:
                first = commands.queue(), None
            except SlurmError as error:
                first = {}, error
        queue, problem = first
        if problem is not None:
            raise problem
        return queue

    return ask


def live_jobs(folders: Iterable[RunFolder], ask: Ask) -> Mapping[str, tuple[str, JobState]]:
    """Run folder's path -> its job that waits or runs; SLURM isn't asked where nothing was submitted."""
    newest = {folder: newest_submission(folder) for folder in folders}
    asked = [folder for folder, submission in newest.items() if submission or folder.job_script.exists()]
    if not asked or not commands.is_there():
        return {}
    queue, live = ask(), {}
    scripts = by_script(queue)
    for folder in asked:
        submission = newest[folder]
        if submission is not None and submission.slurm_id in queue:
            live[str(folder.path)] = (submission.slurm_id, queue[submission.slurm_id].state)
        elif unrecorded := made_of(folder.job_script, scripts):
            live[str(folder.path)] = next(iter(unrecorded.items()))
    return live
