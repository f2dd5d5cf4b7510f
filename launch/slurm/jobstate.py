"""SLURM's words about jobs, read: states, fields of `scontrol show job`, what is said of one. Plan half."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from orchestrator.errors import PhalanxError


class SlurmError(PhalanxError):
    """SLURM refused, did not answer, or said what we don't know."""


class UnansweredError(PhalanxError):
    """Whether SLURM has taken a job is not known; no SlurmError, after which there is none."""


class JobState(StrEnum):
    """Every state of SLURM 20.02 to 25.05 (man squeue, JOB STATE CODES)."""

    PENDING = "PENDING"
    CONFIGURING = "CONFIGURING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    STOPPED = "STOPPED"
    COMPLETING = "COMPLETING"
    STAGE_OUT = "STAGE_OUT"
    SIGNALING = "SIGNALING"
    RESIZING = "RESIZING"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    POWER_UP_NODE = "POWER_UP_NODE"
    EXPEDITING = "EXPEDITING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    BOOT_FAIL = "BOOT_FAIL"
    DEADLINE = "DEADLINE"
    REVOKED = "REVOKED"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    RECONFIG_FAIL = "RECONFIG_FAIL"

    @property
    def is_waiting(self) -> bool:
        return self in _WAITING

    @property
    def is_end(self) -> bool:
        return self in _ENDS


_WAITING = frozenset(
    {
        JobState.PENDING,
        JobState.REQUEUED,
        JobState.REQUEUE_FED,
        JobState.REQUEUE_HOLD,
        JobState.SPECIAL_EXIT,
        JobState.RESV_DEL_HOLD,
    }
)
_ENDS = frozenset(
    {
        JobState.COMPLETED,
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.TIMEOUT,
        JobState.NODE_FAIL,
        JobState.PREEMPTED,
        JobState.OUT_OF_MEMORY,
        JobState.BOOT_FAIL,
        JobState.DEADLINE,
        JobState.REVOKED,
        JobState.LAUNCH_FAILED,
        JobState.RECONFIG_FAIL,
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobView:
    """One job as slurmctld has it now."""

    job_id: int
    state: JobState
    reason: str | None
    """Why it waits, or how it ended; None where there is nothing to say."""
    restarts: int
    nodes: str | None
    """As in v[1-3]; None where none are assigned."""
    batch_host: str | None
    start_s: float | None
    """Unix seconds: of the start, or SLURM's estimate of it."""
    end_s: float | None
    """Unix seconds: of the end, or the time limit of a running job."""
    preempt_s: float | None
    """When SLURM began to take the nodes away for another job; None where it does not."""
    exit_code: str
    """CODE:SIGNAL."""


ACCOUNTED = ("JobIDRaw", "State", "ExitCode", "NodeList", "Start", "End")
"""Fields of sacct that `parse_accounted` reads, in their order."""


def known_state(job: int | str, word: str) -> JobState:
    """Raises SlurmError for a word that is not a state: it must never pass for an end."""
    try:
        return JobState(word)
    except ValueError:
        raise SlurmError(
            f"SLURM says that job {job} is {word}, which phalanx does not know; look at it with: "
            f"scontrol show job {job}"
        ) from None


def parse_job(text: str) -> JobView:
    """One line of `scontrol show job --oneliner`. Raises SlurmError for a state that is not known."""
    fields = dict(re.findall(r"(?:^|\s)([A-Za-z/:]+)=(\S*)", text))
    job = int(fields.get("JobId", "0"))
    return JobView(
        job_id=job,
        state=known_state(job, fields.get("JobState", "nothing")),
        reason=_said(fields.get("Reason")),
        restarts=int(fields.get("Restarts", "0")),
        nodes=_said(fields.get("NodeList")),
        batch_host=_said(fields.get("BatchHost")),
        start_s=_unix_s(fields.get("StartTime")),
        end_s=_unix_s(fields.get("EndTime")),
        preempt_s=_unix_s(fields.get("PreemptTime")),
        exit_code=fields.get("ExitCode", "0:0"),
    )


def parse_accounted(job: int | str, text: str) -> JobView | None:
    """Lines of sacct, one for each time that the job was started; the newest counts. None where there is none.

    Raises SlurmError for a state that is not known.
    """
    rows = [line.split("|") for line in text.splitlines() if line.startswith(f"{job}|")]
    if not rows:
        return None
    _, state, exit_code, nodes, start, end = rows[-1]
    return JobView(
        job_id=int(str(job).partition("_")[0]),
        state=known_state(job, state.split()[0]),  # `CANCELLED by 1000`
        reason=None,
        restarts=len(rows) - 1,
        nodes=_said(nodes),
        batch_host=None,
        start_s=_unix_s(start),
        end_s=_unix_s(end),
        preempt_s=None,
        exit_code=exit_code,
    )


@dataclass(frozen=True, slots=True)
class QueuedJob:
    state: JobState
    script: str
    """As sbatch was given it: an absolute path from phalanx, whatever from others, arguments and all."""


QUEUED = "phalanx-queue %i %T %o"
"""The format of squeue that `parse_queue` reads. Lines among a job's arguments don't begin so."""
_QUEUED = re.compile(r"phalanx-queue (\d\S*) (\S+) ?(.*)")


def parse_queue(text: str) -> dict[str, QueuedJob]:
    """What squeue says, by the job's id. Raises SlurmError for a state that is not known."""
    found = [match for line in text.split("\n") if (match := _QUEUED.fullmatch(line))]
    return {job: QueuedJob(known_state(job, state), script) for job, state, script in (m.groups() for m in found)}


def job_words(view: JobView, now_s: float) -> str:
    """`job 12 PENDING (Resources), starts about 14:02`; `job 12 RUNNING on v[1-3], 1 restart, 42 min left`."""
    words = f"job {view.job_id} {view.state}"
    if view.state.is_waiting or view.state.is_end:
        words += f" ({view.reason})" if view.reason else ""
    parts = [words + (f" on {view.nodes}" if view.nodes else "")]
    if view.state.is_waiting and view.start_s is not None:
        parts.append(f"starts about {datetime.fromtimestamp(view.start_s):%Y-%m-%d %H:%M}")
    if view.state is JobState.RUNNING and view.end_s is not None and view.end_s > now_s:
        parts.append(f"{(view.end_s - now_s) / 60:.0f} min left")
    if view.state.is_end:
        parts.append(f"exit code {view.exit_code}")
    if view.restarts:
        parts.append(f"{view.restarts} restart{'s' * (view.restarts > 1)}")
    return ", ".join(parts)


def _said(word: str | None) -> str | None:
    return None if word in (None, "", "(null)", "None", "None assigned", "N/A", "Unknown") else word


def _unix_s(word: str | None) -> float | None:
    """SLURM prints local time; its commands run where we run."""
    try:
        return datetime.fromisoformat(word or "").timestamp()
    except ValueError:
        return None
