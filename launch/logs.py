"""`phalanx logs`: what a rank printed. Reads files only."""

import argparse
import contextlib
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from launch.cli_help import parser
from launch.runs import find_run
from launch.slurm import commands
from launch.slurm.jobstate import SlurmError
from launch.slurm.record import newest_submission, submissions
from orchestrator.errors import ConfigError
from orchestrator.observe.failure import rank_ranges
from orchestrator.observe.ledger import EventName, read_events
from orchestrator.observe.state import RunState, run_state
from orchestrator.runfolder import RunFolder

_EXAMPLES = """  phalanx logs quickstart-1a2b3c4d           the newest attempt's rank 0, or the rank that failed first
  phalanx logs runs/quickstart-1a2b3c4d -f   follow it until the run ends
  phalanx logs RUN --rank 3 --attempt 1 --tail 50
  phalanx logs RUN --job -f                  what its SLURM job prints"""
_POLL_S = 0.2
_ASK_S = 2.0
"""How often SLURM is asked how a job is."""


def run(argv: Sequence[str]) -> int:
    """The verb. The file's name goes to standard error, its content to standard output."""
    arguments = _parser().parse_args(argv)
    folder = find_run(arguments.run, arguments.root)

    def choose() -> Path:
        if arguments.job:
            return job_log(folder)
        return chosen_log(folder, rank=arguments.rank, attempt=arguments.attempt)

    path = choose()
    print(f"==> {path}", file=sys.stderr, flush=True)
    try:
        with path.open("rb") as log:
            _print_all(log, sys.stdout.buffer, arguments.tail)
            if arguments.follow:
                is_going = _job_watch(folder) if arguments.job else lambda: _is_running(folder)
                _follow(log, path, choose, is_going, sys.stdout.buffer)
    except KeyboardInterrupt:
        pass  # Ctrl-C and `| head` are how a person ends this
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
    return 0


def _parser() -> argparse.ArgumentParser:
    parsing = parser("logs", "What a rank printed.", _EXAMPLES)
    parsing.add_argument("run", help="a run's id or folder")
    parsing.add_argument("--rank", type=int, help="default: 0, or the rank that failed first")
    parsing.add_argument("--attempt", type=int, help="default: the newest")
    parsing.add_argument("--job", action="store_true", help="the output of the run's newest SLURM job instead")
    parsing.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    parsing.add_argument("--tail", type=int, metavar="N", help="only the last N lines")
    parsing.add_argument("--root", type=Path, default=Path("runs"), help="where the runs are (default: runs)")
    return parsing


def chosen_log(folder: RunFolder, *, rank: int | None, attempt: int | None) -> Path:
    """The log file that is meant. Errors: ConfigError naming the attempts or ranks that there are."""
    started = _numbers(folder.path, r"attempt_(\d+)")
    ranks_of = {number: _numbers(folder.attempt(number), r"rank_(\d+)\.log") for number in started}
    attempts = [number for number in started if ranks_of[number]]
    if not attempts:
        raise ConfigError(f"run {folder.run_id} has no logs yet: no rank was started in {folder.path}")
    if attempt is None:
        attempt = attempts[-1]
    elif attempt not in attempts:
        raise ConfigError(f"--attempt={attempt}: run {folder.run_id} has logs of attempts {rank_ranges(attempts)}")
    ranks = ranks_of[attempt]
    if rank is None:
        failed = first_failing_rank(read_events(folder.events), attempt)
        rank = failed if failed in ranks else ranks[0]
    elif rank not in ranks:
        raise ConfigError(f"--rank={rank}: attempt {attempt} of run {folder.run_id} has ranks {rank_ranges(ranks)}")
    return folder.rank_log(attempt, rank)


def job_log(folder: RunFolder) -> Path:
    """The output of the newest of the run's SLURM jobs that has begun. Errors: ConfigError where there is none."""
    jobs = [submission.slurm_id for submission in submissions(folder)]
    if not (jobs or folder.job_script.exists()):
        raise ConfigError(f"run {folder.run_id} was never submitted as a SLURM job; leave --job out")
    begun = [path for job in jobs if (path := folder.job_output(job)).exists()]
    if not begun:
        job = f"job {jobs[-1]}" if jobs else "the job"  # not written down, as submit was killed: it does so itself
        raise ConfigError(f"{job} of run {folder.run_id} has not started; see phalanx status {folder.quoted}")
    return begun[-1]


def first_failing_rank(events: Sequence[dict[str, Any]], attempt: int) -> int | None:
    """The rank that the failed run's end names, else the first to die; None where it did not fail."""
    failed = [event for event in events if event["event"] == EventName.run_failed]
    if not failed or failed[-1]["attempt"] != attempt:
        return None
    if isinstance(failed[-1].get("rank"), int):
        return int(failed[-1]["rank"])
    died = [event for event in events if event["event"] == EventName.rank_died and event["attempt"] == attempt]
    return int(died[0]["rank"]) if died else None


def _numbers(folder: Path, pattern: str) -> list[int]:
    names = (re.fullmatch(pattern, path.name) for path in folder.iterdir())
    return sorted(int(name.group(1)) for name in names if name)


def _print_all(log: BinaryIO, out: BinaryIO, tail: int | None) -> None:
    """The whole file, or its last `tail` lines in memory for those lines only."""
    for line in log if tail is None else deque(log, maxlen=max(0, tail)):
        out.write(line)
    out.flush()


def _is_running(folder: RunFolder) -> bool:
    return run_state(folder).state is RunState.running


def _job_watch(folder: RunFolder) -> Callable[[], bool]:
    """Whether the run or its newest job goes on: a job also prints before its driver starts, and waits in between."""
    asked_s, is_live = float("-inf"), commands.is_there()

    def is_going() -> bool:
        nonlocal asked_s, is_live
        if is_live and time.monotonic() - asked_s > _ASK_S:
            asked_s = time.monotonic()
            newest = newest_submission(folder)
            with contextlib.suppress(SlurmError):  # asked again next time
                view = commands.job(newest.slurm_id) if newest else None
                is_live = view is not None and not view.state.is_end
        return is_live or _is_running(folder)

    return is_going


def _follow(
    log: BinaryIO, path: Path, choose: Callable[[], Path], is_going: Callable[[], bool], out: BinaryIO
) -> None:
    """Prints what is added until the run ends; a newer attempt's log is taken up when it appears."""
    with ExitStack() as opened:
        while True:
            # Asked before reading: what was written before the end is then still printed.
            is_running = is_going()
            newest = choose()
            out.write(log.read())
            if newest != path:
                out.flush()
                print(f"==> {newest}", file=sys.stderr, flush=True)
                path, log = newest, opened.enter_context(newest.open("rb"))
                out.write(log.read())
            out.flush()
            if not is_running:
                return
            time.sleep(_POLL_S)
