"""`phalanx cancel`: end a run, by SLURM where it is a job, else by its driver's process."""

import os
import re
import signal
import socket
from pathlib import Path

from launch.cli_help import parser
from launch.runs import DEFAULT_ROOT, find_run
from launch.slurm import commands
from launch.slurm.record import newest_submission
from orchestrator.errors import ConfigError
from orchestrator.observe.state import is_held
from orchestrator.runfolder import RunFolder

EXAMPLES = """  phalanx cancel quickstart-1a2b3c4d          save at the next step boundary, then leave
  phalanx cancel runs/quickstart-1a2b3c4d --now

What was saved stays: the same train or submit command goes on with the run."""


def run(argv: list[str]) -> int:
    """The verb. Exit code 0 where the run was told to end; ConfigError where nothing runs."""
    reading = parser("cancel", "End a run: its SLURM job, or its driver.", EXAMPLES, "RUN [--now] [--root DIR]")
    reading.add_argument("run", help="a run's id or folder")
    reading.add_argument("--now", action="store_true", help="don't wait for a checkpoint")
    reading.add_argument("--root", default=DEFAULT_ROOT, help="where the runs are (default: runs)")
    options = reading.parse_args(argv)
    folder = find_run(options.run, options.root)
    print(_cancel_job(folder, options.now) or _cancel_driver(folder, options.now))
    return 0


def _cancel_job(folder: RunFolder, is_now: bool) -> str | None:
    """What was done; None for a run that is no job, or whose job has ended."""
    newest = newest_submission(folder)
    view = commands.job(newest.slurm_id) if newest else None
    if newest is None or view is None or view.state.is_end:
        return None
    if view.state.is_waiting or is_now:
        commands.cancel(newest.slurm_id)
        return f"job {newest.slurm_id} of run {folder.run_id} is cancelled (it was {view.state})"
    commands.ask_to_leave(newest.slurm_id)
    return (
        f"job {newest.slurm_id} of run {folder.run_id} was told to save at the next step boundary and to leave; "
        f"follow it with phalanx status {folder.path}"
    )


def _cancel_driver(folder: RunFolder, is_now: bool) -> str:
    holder = _holder(folder.lock)
    if holder is None:
        raise ConfigError(f"run {folder.run_id} is not running; see phalanx status {folder.path}")
    pid, host = holder
    if host != socket.gethostname():
        raise ConfigError(f"run {folder.run_id} runs on {host}; type this there: phalanx cancel {folder.path}")
    try:
        os.kill(pid, signal.SIGTERM)
        if is_now:
            os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        raise ConfigError(f"run {folder.run_id} has just ended") from None
    how = "to end at once" if is_now else "to save at the next step boundary and to leave"
    return f"the driver of run {folder.run_id} (pid {pid}) was told {how}"


def _holder(lock: Path) -> tuple[int, str] | None:
    """(pid, host) of the live driver, which wrote them into its lock; None where none holds it."""
    if not is_held(lock):
        return None
    found = re.match(r"pid (\d+) on (\S+)", lock.read_text(errors="replace"))
    return (int(found[1]), found[2]) if found else None
