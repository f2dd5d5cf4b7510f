"""What a job does when its driver has ended: leave, go back into the queue, or wait for SLURM. Plan half."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.control.badnodes import BadNode
from orchestrator.errors import EXIT_FAILED, EXIT_PREEMPTED
from orchestrator.slurm_config import SlurmRequeue

FRUITLESS_JOBS = 2
"""A run that was put back so often without a new checkpoint would be put back for ever."""
MAX_MOVES = 3
"""So often in a row a job goes back for other nodes before it trains; then the fault is hardly the nodes'."""


class Step(StrEnum):
    leave = "leave"
    requeue = "requeue"
    """`scontrol requeue`: the same job again."""
    chain = "chain"
    """Submit a successor."""
    wait = "wait"
    """SLURM is taking the nodes for another job and requeues this one by itself; a job that ends before that would
    just have ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """What is known when the driver has ended, or could not be started."""

    exit_code: int
    notice: str | None
    """The first signal from SLURM: SIGUSR1 or SIGTERM."""
    was_terminated: bool
    """SIGTERM came, first or later: a person's scancel, or SLURM's own hand."""
    is_preempted: bool
    has_lost_node: bool
    """The run failed because a node did, and none took its place."""
    fruitless_jobs: int
    has_bad_nodes: bool = False
    """The preflight left too few nodes to start on."""
    moves: int = 0
    """Preflights in a row that left too few, this one among them."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    step: Step
    exit_code: int
    why: str | None = None
    """Where a person should know."""


def conclude(ended: Ended, policy: SlurmRequeue) -> Conclusion:
    """SIGUSR1 and a lost node go on in another job; SIGTERM never does: scancel looks like preemption, and SLURM
    requeues what it preempts."""
    if ended.exit_code == 0:
        return Conclusion(Step.leave, 0)
    if ended.is_preempted and ended.notice is not None:
        return Conclusion(Step.wait, EXIT_PREEMPTED)
    was_told = ended.notice is not None and ended.exit_code == EXIT_PREEMPTED
    goes_on = was_told or ended.has_lost_node or ended.has_bad_nodes
    if ended.was_terminated or not goes_on:
        return Conclusion(Step.leave, ended.exit_code)
    if policy is SlurmRequeue.never:
        return Conclusion(Step.leave, EXIT_PREEMPTED, "cluster.slurm.requeue=never: submit the run again to go on")
    if (why := _in_vain(ended)) is not None:
        return Conclusion(Step.leave, EXIT_FAILED, why)
    return Conclusion(Step.chain if policy is SlurmRequeue.chain else Step.requeue, EXIT_PREEMPTED)


def _in_vain(ended: Ended) -> str | None:
    """Why another job would not help either; None where it may."""
    if ended.has_bad_nodes and ended.moves > MAX_MOVES:
        return (
            f"bad nodes were found in {ended.moves} jobs in a row, so another would not help: read bad_nodes.txt, "
            "lower cluster.slurm.preflight.min_rate, or set cluster.slurm.preflight.enabled=false"
        )
    if ended.has_bad_nodes or ended.fruitless_jobs < FRUITLESS_JOBS:
        return None
    return (
        f"no checkpoint was made in {ended.fruitless_jobs + 1} jobs, so another would not help: raise "
        "cluster.slurm.time_limit_min or notice_s, or lower checkpoint.every_steps"
    )


def committed_step(events: Sequence[dict[str, Any]]) -> int:
    """Of the newest checkpoint; 0 where there is none."""
    return max((int(event["step"]) for event in events if event["event"] == "checkpoint_committed"), default=0)


def fruitless_jobs(events: Sequence[dict[str, Any]], saved_step: int) -> int:
    """How many of the newest requeues in a row left with `saved_step`, which is saved now; those for other nodes, on
    which nothing was tried, don't count."""
    count = 0
    for event in reversed(events):
        if event["event"] == "requeued" and not event.get("bad_nodes"):
            if event["step"] != saved_step:
                break
            count += 1
    return count


def moves(bad: Sequence[BadNode], events: Sequence[dict[str, Any]]) -> int:
    """How many preflights found bad nodes since an attempt was last started."""
    started_s = max((float(event["t"]) for event in events if event["event"] == "attempt_started"), default=0.0)
    return len({entry.time_s for entry in bad if entry.time_s > started_s})


def saved_after(events: Sequence[dict[str, Any]], since_s: float) -> tuple[int, float] | None:
    """(step, seconds after `since_s`) of the first checkpoint committed since; None where there was none."""
    return next(saves_since(events, since_s), None)


def saves_since(events: Sequence[dict[str, Any]], since_s: float) -> Iterator[tuple[int, float]]:
    """(step, seconds after `since_s`) of each checkpoint committed since."""
    for event in events:
        if event["event"] == "checkpoint_committed" and event["t"] >= since_s:
            yield int(event["step"]), float(event["t"]) - since_s


def slowest_save_s(events: Sequence[dict[str, Any]]) -> float | None:
    """The longest that a checkpoint of this run has taken so far; None where none was made."""
    return max((float(e["seconds"]) for e in events if e["event"] == "checkpoint_committed"), default=None)


def lost_a_node(events: Sequence[dict[str, Any]], since_s: float) -> bool:
    """Whether the run ended since then for want of a node, not by a fault of its own."""
    recent = [event for event in events if event["t"] >= since_s]
    failed = [event for event in recent if event["event"] == "run_failed"]
    return bool(failed) and failed[-1].get("rank") is None and any(e["event"] == "node_lost" for e in recent)


def notice_words(name: str, left_s: float | None, saved: str, then: str) -> str:
    """`caught SIGUSR1, 178 s left, saved step 1234 in 9 s, requeued (restart 2)`"""
    left = [] if left_s is None else [f"{max(0.0, left_s):.0f} s left"]
    return ", ".join([f"caught {name}", *left, saved, then])


def saved_words(events: Sequence[dict[str, Any]], since_s: float) -> str:
    """`saved step 1234 in 9 s`"""
    saved = saved_after(events, since_s)
    return "nothing to save" if saved is None else f"saved step {saved[0]} in {saved[1]:.0f} s"
