"""What the ledger's events tell of attempts."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.control.attempt import Attempt, Message
from orchestrator.control.chronicle import Chronicle
from orchestrator.control.snapshotmemory import memory_words
from orchestrator.control.stragglers import straggler_fields
from orchestrator.observe.failure import RankFailure, digest


def tell_start(chronicle: Chronicle, attempt: Attempt, former_size: int, zero_stage: int, steps_lost: int) -> None:
    """`former_size`: how many workers the attempt before had; `steps_lost`: that are done again."""
    number, resume, size = attempt.number, attempt.resume, attempt.world_size
    if size != former_size:
        why = "there are nodes again" if size > former_size else "a node was lost and no other took its place"
        chronicle.event("resized", number, resume.step, **{"from": former_size, "to": size, "why": why})
    facts = {"resume_step": resume.step, "source": resume.source, "checkpoint": resume.checkpoint}
    facts |= {"world_size": size, "zero_stage": zero_stage, "steps_lost": steps_lost}
    chronicle.event("attempt_started", number, resume.step, **facts)


def failure_words(attempt: Attempt, restarts: int, folder: Path) -> tuple[int, str]:
    """(the rank that failed first, the digest) of the last attempt of a run that has failed."""
    rank = attempt.first_failure.rank
    done = f"restarted {restarts} times, then stopped: the budget in fault.* is used up"
    next_step = shlex.join(["phalanx", "logs", str(folder), "--rank", str(rank)])
    return rank, digest(attempt.failures, done=done, next_steps=[next_step])


def death_fields(failure: RankFailure) -> dict[str, Any]:
    """What `rank_died` says."""
    return {name: getattr(failure, name) for name in ("rank", "node", "signal", "exit_code", "message")}


def tell_memory(
    chronicle: Chronicle, found: dict[str, int], planned_bytes: int, attempt: int, step: int | None
) -> str:
    """`found` as of `Fleet.memory`; returns it in words."""
    facts = {"tier": "memory", **found, "planned_bytes": planned_bytes}
    chronicle.event("snapshot", attempt, step, is_told=False, **facts)
    return memory_words(found["bytes"], planned_bytes, found["agent_bytes"])


def tell_rejected(chronicle: Chronicle, message: Message) -> None:
    """A rank was given a damaged snapshot."""
    facts = {"path": f"memory of rank {message['rank']}", "message": message["message"]}
    chronicle.event("checkpoint_rejected", message["attempt"], message["step"], **facts)


def tell_lost(
    chronicle: Chronicle, attempt: Attempt | None, host: str, now_s: float, *, ranks: Sequence[int], why: str | None
) -> None:
    """A node is lost, with its `ranks`; or, where it is said `why`, left. `now_s`: unix seconds."""
    number, step = (attempt.number, attempt.last_step) if attempt is not None else (0, None)
    chronicle.event("node_lost", number, step, **{"node": host} | ({"why": why} if why else {}))
    if attempt is not None:
        attempt.add_lost_node(ranks, host, now_s)


def tell_stragglers(chronicle: Chronicle, attempt: Attempt, host_of_rank: Callable[[int], str]) -> None:
    found, attempt.stragglers = attempt.stragglers, []
    for straggler in found:
        fields = straggler_fields(straggler, host_of_rank(straggler.rank))
        chronicle.event("straggler", attempt.number, attempt.last_step, **fields)
