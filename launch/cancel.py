"""`phalanx cancel`: end a run, by SLURM where it is a job, else by its driver's process."""

import os
import re
import shlex
import signal
import socket
from pathlib import Path

from launch.cli_help import parser
from launch.runs import DEFAULT_ROOT, find_run
from launch.slurm import commands
from launch.slurm.commands import NoSlurmError
from launch.slurm.finding import by_script, made_of, newest_job
from launch.slurm.jobstate import JobState, JobView
from launch.slurm.record import newest_submission
from launch.sweep_status import find_sweep
from orchestrator.errors import ConfigError
from orchestrator.observe.jsonlines import read_records
from orchestrator.observe.state import is_held
from orchestrator.processes import has_open
from orchestrator.runfolder import RunFolder
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.study import read_study

EXAMPLES = """  phalanx cancel quickstart-1a2b3c4d          save at the next step boundary, then leave
  phalanx cancel runs/quickstart-1a2b3c4d --now
  phalanx cancel quickstart-sweep-1a2b3c4d    every trial of a sweep saves and leaves

What was saved stays: the same train, submit or sweep command goes on."""


def run(argv: list[str]) -> int:
    """The verb. Exit code 0 where the run was told to end; ConfigError where nothing runs."""
    reading = parser(
        "cancel", "End a run or a sweep: its SLURM jobs, or its driver.", EXAMPLES, "RUN [--now] [--root DIR]"
    )
    reading.add_argument("run", help="a run's or a sweep's id or folder")
    reading.add_argument("--now", action="store_true", help="don't wait for a checkpoint")
    reading.add_argument("--root", default=DEFAULT_ROOT, help="where the runs are (default: runs)")
    options = reading.parse_args(argv)
    if (sweep := find_sweep(options.run, Path(options.root))) is not None:
        print(_cancel_sweep(sweep, options.now))
        return 0
    folder = find_run(options.run, options.root)
    print(_cancel_job(folder, options.now) or _cancel_driver(f"run {folder.run_id}", folder.lock, options.now))
    return 0


def _cancel_sweep(sweep: SweepFolder, is_now: bool) -> str:
    """Its job or its driver, which lets every trial save and leave; of a job array each task."""
    if (words := _cancel_job(RunFolder(sweep.path), is_now)) is not None:
        return words
    if is_held(sweep.lock) or not sweep.array.exists():
        return _cancel_driver(f"sweep {sweep.sweep_id}", sweep.lock, is_now)
    told: dict[str, str] = {}
    for folder in map(sweep.trial, read_study(read_records(sweep.study)).trials):
        if (live := _live_job(folder)) is not None:
            told[live[0]] = _end_job(*live, folder, is_now)
    for task, state in made_of(sweep.array_script, by_script(commands.queue())).items():
        if not state.is_end and task not in told:  # its `sweep` was killed before it could write it down
            told[task] = _end_job(task, state, RunFolder(sweep.path), is_now)
    if not told:
        raise ConfigError(f"no task of sweep {sweep.sweep_id} is queued or runs; see phalanx status {sweep.quoted}")
    return "\n".join(told.values())


def _cancel_job(folder: RunFolder, is_now: bool) -> str | None:
    """What was done; None where there is no live job."""
    live = _live_job(folder)
    return None if live is None else _end_job(*live, folder, is_now)


def _live_job(folder: RunFolder) -> tuple[str, JobState] | None:
    """None for a run that is no job, or whose job has ended."""
    job, view = _newest_job(folder) or ("", None)
    return None if view is None or view.state.is_end else (job, view.state)


def _end_job(job: str, state: JobState, folder: RunFolder, is_now: bool) -> str:
    """What was done. `folder`: of a run or a sweep."""
    if state.is_waiting or is_now:
        commands.cancel(job)
        return f"job {job} of {folder.run_id} is cancelled (it was {state})"
    commands.ask_to_leave(job)
    return (
        f"job {job} of {folder.run_id} was told to save at the next step boundary and to leave; "
        f"follow it with phalanx status {folder.quoted}"
    )


def _newest_job(folder: RunFolder) -> tuple[str, JobView | None] | None:
    """None also where there is no SLURM, and nothing was recorded."""
    try:
        return newest_job(folder)
    except NoSlurmError:
        if newest_submission(folder) is not None:
            raise
        return None


def _cancel_driver(what: str, lock: Path, is_now: bool) -> str:
    """`what`: `run first`, or `sweep NAME`."""
    holder = _holder(lock)
    if holder is None:
        raise ConfigError(f"{what} is not running; see phalanx status {shlex.quote(str(lock.parent))}")
    pid, host = holder
    if host != socket.gethostname():
        raise ConfigError(f"{what} runs on {host}; type this there: phalanx cancel {shlex.quote(str(lock.parent))}")
    if not has_open(pid, lock):  # its number may be another's by now
        if not is_held(lock):
            raise ConfigError(f"{what} has just ended")
        raise ConfigError(
            f"who started {what} (pid {pid}) is gone, and what it had started, as an sbatch that waits for SLURM, "
            f"still holds {lock}; type this again once that has ended"
        )
    try:
        os.kill(pid, signal.SIGTERM)
        if is_now:
            os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        raise ConfigError(f"{what} has just ended") from None
    how = "to end at once" if is_now else "to save at the next step boundary and to leave"
    return f"the driver of {what} (pid {pid}) was told {how}"


def _holder(lock: Path) -> tuple[int, str] | None:
    """(pid, host) of the live driver, which wrote them into its lock; None where none holds it."""
    if not is_held(lock):
        return None
    found = re.match(r"pid (\d+) on (\S+)", lock.read_text(errors="replace"))
    return (int(found[1]), found[2]) if found else None
