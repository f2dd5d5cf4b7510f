"""SLURM's commands: the only file that calls sbatch, squeue, scontrol, sinfo, scancel and sacct.

srun is a stream of its own, for as long as what it starts: the job's (launch/job/) and allocation.py's.
"""

import contextlib
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.slurm.jobstate import (
    ACCOUNTED,
    QUEUED,
    JobView,
    QueuedJob,
    SlurmError,
    UnansweredError,
    parse_accounted,
    parse_job,
    parse_queue,
)
from launch.slurm.partitions import Partition, parse_partitions
from orchestrator.errors import ConfigError

_UNKNOWN_JOB = re.compile(r"Invalid job id|Job \S+ not found")
"""What scontrol says of a job that it does not know any more, and of a task that was cancelled before it started."""
_TIMEOUT_S = 120.0
"""slurmctld is asked again by SLURM's commands themselves; a controller that is gone is given up after this."""


class NoSlurmError(ConfigError):
    """SLURM's commands are not on the PATH."""


def partitions() -> list[Partition]:
    """Every partition and what its nodes have."""
    shown = _checked("sinfo", "--noheader", "--exact", "--format=%R|%P|%D|%c|%m|%G|%l")
    return parse_partitions(shown)


def test_only(script: Path, *options: str) -> str:
    """What SLURM would do with the script: `Job 12 to start at ...`. Raises ConfigError where it refuses."""
    done = _run("sbatch", "--test-only", *options, str(script.absolute()))
    if done.returncode:
        raise ConfigError(f"SLURM refuses the job: {_complaint(done)}; {way_out(_complaint(done))}")
    return _complaint(done)


def submit(script: Path, *options: str, lock: int | None = None) -> int:
    """The new job's id. Raises ConfigError where SLURM refuses it, UnansweredError where it may have it all the same.

    SLURM keeps the script's path as it is given.
    `lock`: a descriptor that sbatch inherits: what it locks stays locked while sbatch asks SLURM, whoever is killed.
    """
    try:
        done = _run("sbatch", "--parsable", *options, str(script.absolute()), keep=[] if lock is None else [lock])
    except SlurmError as error:
        raise UnansweredError(str(error)) from None
    if done.returncode:
        raise ConfigError(f"SLURM refuses the job: {_complaint(done)}; {way_out(_complaint(done))}")
    job = done.stdout.strip().partition(";")[0]
    if not job.isdecimal():
        raise UnansweredError(f"sbatch says {job!r} where the new job's id should be; see squeue --me")
    return int(job)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the end of the block: a job that SLURM has taken is written down first."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in came[:1]:
        signal.raise_signal(number)


def job(job_id: int | str) -> JobView | None:
    """The job (12, or 12_3 for a task of an array) as slurmctld has it; None where it knows it no more.

    That is MinJobAge after its end.
    """
    done = _run("scontrol", "show", "job", "--oneliner", str(job_id))
    if done.returncode and _UNKNOWN_JOB.search(done.stdout + done.stderr):
        return None
    if done.returncode:
        raise SlurmError(f"scontrol does not answer: {_complaint(done)}")
    return parse_job(done.stdout)


def accounted(job_id: int | str) -> JobView | None:
    """The job as accounting has it, or the site's file of completed jobs; None where neither has it."""
    if shutil.which("sacct") is None:
        return None
    words = ("--noheader", "--parsable2", f"--jobs={job_id}", f"--format={','.join(ACCOUNTED)}")
    for source in (("--allocations", "--duplicates"), ("--completion",)):
        done = _run("sacct", *source, *words)
        view = parse_accounted(job_id, done.stdout) if done.returncode == 0 else None
        if view is not None:
            return view
    return None


def queue() -> dict[str, QueuedJob]:
    """My jobs that wait or run, and the tasks of my arrays as 12_3."""
    return parse_queue(_checked("squeue", "--noheader", "--me", "--array", f"--format={QUEUED}"))


def requeue(job_id: int | str) -> None:
    """Raises SlurmError where the site forbids it."""
    _checked("scontrol", "requeue", str(job_id))


def exclude(job_id: int | str, nodes: str) -> None:
    """Have a waiting job leave out `nodes`, as in v1,v[3-4]. Raises SlurmError where SLURM refuses."""
    _checked("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={nodes}")


def cancel(job_id: int | str) -> None:
    """SIGTERM to all of it, SIGKILL after KillWait."""
    _checked("scancel", str(job_id))


def ask_to_leave(job_id: int | str) -> None:
    """SIGTERM to the batch script only: the run saves at its step boundary, however long that takes."""
    _checked("scancel", "--batch", "--signal=TERM", str(job_id))


def hostnames(node_list: str) -> list[str]:
    """`v[1-3]` -> v1, v2, v3."""
    return _checked("scontrol", "show", "hostnames", node_list).split()


def is_there() -> bool:
    return shutil.which("sbatch") is not None


def _checked(*words: str) -> str:
    done = _run(*words)
    if done.returncode:
        raise SlurmError(f"{words[0]} failed: {_complaint(done)}")
    return done.stdout


def _run(*words: str, keep: Sequence[int] = ()) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            pass_fds=keep,
            process_group=0,  # a Ctrl-C on the terminal is ours to handle
        )
    except FileNotFoundError:
        raise NoSlurmError(
            f"{words[0]} is not on the PATH, so this is no SLURM cluster's login node; go to one, or try the job on "
            "a virtual cluster: phalanx cluster virtual --help"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{words[0]} has not answered in {_TIMEOUT_S:g} s; is slurmctld up? try: scontrol ping"
        ) from None


def _complaint(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [re.sub(r"^(s[a-z]+: )?(error: )?", "", line.strip()) for line in done.stderr.splitlines()]
    said = [line for line in lines if line] or [f"exit code {done.returncode}"]
    return "; ".join(dict.fromkeys(said))


def way_out(complaint: str) -> str:
    """What to change where SLURM says `complaint`."""
    for words, cure in _WAYS_OUT:
        if re.search(words, complaint, re.IGNORECASE):
            return cure
    return "look at the script with --dry-run, and at the partitions with: sinfo"


_WAYS_OUT: Sequence[tuple[str, str]] = (
    (
        "account",
        "set cluster.slurm.account to one of yours (sacctmgr show associations user=$USER), or another partition",
    ),
    ("array", "list fewer values: sinfo's MaxArraySize is the limit (scontrol show config)"),
    ("qos", "set cluster.slurm.qos to one that your account has"),
    ("partition", "set cluster.slurm.partition to one that sinfo shows"),
    ("time limit|TimeLimit", "lower cluster.slurm.time_limit_min"),
    ("node name", "correct cluster.slurm.exclude, or bad_nodes.txt in the run's folder"),
    ("reservation", "set cluster.slurm.reservation to one that `scontrol show reservation` shows"),
    ("memory", "lower cluster.slurm.memory_per_node"),
    ("node configuration|not available|constraint|feature", "ask for less per node, or for what sinfo shows"),
)
