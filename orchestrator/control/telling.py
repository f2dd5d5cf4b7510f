"""What the ledger's events tell of attempts."""

from pathlib import Path
from typing import Any

from orchestrator.control.attempt import Attempt, Interruption
from orchestrator.observe.failure import RankFailure, digest
from orchestrator.spec import ResumePoint


def resized_fields(before: int, after: int) -> dict[str, Any]:
    """What `resized` tells, in workers."""
    why = "there are nodes again" if after > before else "a node was lost and no other took its place"
    return {"from": before, "to": after, "why": why}


def recovered_fields(interruption: Interruption, resume: ResumePoint, now_s: float) -> dict[str, Any]:
    """What `recovered` tells; `now_s` is monotonic."""
    return {
        "downtime_s": now_s - interruption.since_s,
        "steps_lost": interruption.steps_lost(resume),
        "source": resume.source,
        "resume_step": resume.step,
    }


def failure_words(attempt: Attempt, restarts: int, folder: Path) -> tuple[int, str]:
    """(the rank that failed first, the digest) of the last attempt of a run that has failed."""
    rank = attempt.first_failure.rank
    done = f"restarted {restarts} times, then stopped: the budget in fault.* is used up"
    return rank, digest(attempt.failures, done=done, next_steps=[f"phalanx logs {folder} --rank {rank}"])


def death_fields(failure: RankFailure) -> dict[str, Any]:
    """What `rank_died` says."""
    return {name: getattr(failure, name) for name in ("rank", "node", "signal", "exit_code", "message")}


def resume_fields(resume: ResumePoint) -> dict[str, Any]:
    """What `attempt_started` says of where it starts."""
    return {"resume_step": resume.step, "source": resume.source, "checkpoint": resume.checkpoint}
