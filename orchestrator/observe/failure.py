"""What to tell a person when ranks failed: one digest, not 512 tracebacks (contract, section 8). Pure."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, kw_only=True, slots=True)
class RankFailure:
    """How one rank ended. Ranks that we stopped ourselves are not failures: leave them out."""

    rank: int
    node: str
    time_s: float
    """Unix seconds at which its agent saw it end."""
    exit_code: int | None = None
    """None where a signal ended it."""
    signal: int | None = None
    is_hung: bool = False
    """It did not end: it made no progress any more, and was stopped for that."""
    message: str = ""
    """The exception in one line, as `Type: text`; else what is known of its end from outside."""
    traceback_tail: str = ""
    """The last lines it printed, stacks left out."""
    stack: tuple[str, ...] = ()
    """Innermost frames of the thread that crashed or hangs, where they are known."""


class Cause(StrEnum):
    out_of_memory = "out of memory"
    data = "data"
    storage = "storage"
    communication = "communication"
    user_code = "user code"
    node = "node"
    hang = "hang"


# Broken connections are what the *other* ranks see when one dies; by themselves they say nothing about why.
_FOLLOW_ON = re.compile(
    r"connection (was )?(closed|reset|aborted|refused)|reset by peer|broken ?pipe|socket closed|eoferror"
    r"|remote process exited|peer .{0,40}(closed|gone|exited)|recvvalue failed|failed to recv|ncclremoteerror"
    r"|distbackenderror.{0,120}(another rank|store->get|socket)",
    re.IGNORECASE | re.DOTALL,
)
_EXCEPTION_LINE = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit|Warning)\b")
_TIMED_OUT = re.compile(
    r"(collective|nccl|gloo|barrier|allreduce|all_reduce|send/recv|rendezvous|tcpstore|watchdog)"
    r".{0,200}(time|timed) ?-?out"
    r"|timed out.{0,80}(waiting|send|recv|clients|operation|collective)|monitoredbarrier",
    re.IGNORECASE | re.DOTALL,
)
# The order matters: the first that matches names the cause. Texts, not types: a full disk is an OSError too.
_CAUSES: tuple[tuple[Cause, re.Pattern[str]], ...] = tuple(
    (cause, re.compile(pattern, re.IGNORECASE))
    for cause, pattern in (
        (
            Cause.out_of_memory,
            r"out of ?memory|outofmemory|cannot allocate memory|memoryerror|can't allocate|oom[- ]kill"
            r"|std::bad_alloc|defaultcpuallocator",
        ),
        (
            Cause.node,
            r"\bxid\b|ecc error|uncorrectable|fallen off the bus|device-side hardware|nvml"
            r"|node .{0,60}(lost|dead|died|down)|cuda-capable device"
            r"|cuda error: (unknown error|unspecified launch failure|device not ready|no cuda-capable)",
        ),
        (
            Cause.storage,
            r"no space left|disk quota|read-only file system|input/output error|stale file handle"
            r"|permission denied|checkpointerror|safetensors|nosuchbucket|accessdenied|s3fs|gcsfs|botocore"
            r"|\berrno (5|13|28|30|116|122)\b",
        ),
        (
            Cause.data,
            r"dataerror|manifest|token shard|\btokenizer|batch_?digest|unicodedecodeerror"
            r"|index out of range in self|target .{0,12} out of bounds",
        ),
        (
            Cause.communication,
            r"nccl|gloo|processgroup|tcpstore|distbackend|distnetwork|connectionerror|rendezvous",
        ),
    )
)
_SIGNAL_CAUSES: dict[int, Cause] = {
    signal.SIGKILL: Cause.node,
    signal.SIGTERM: Cause.node,
    signal.SIGHUP: Cause.node,
    signal.SIGBUS: Cause.storage,
}

CURES: dict[Cause, tuple[str, ...]] = {
    Cause.out_of_memory: (
        "lower train.micro_batch_size (the global batch and the loss curve stay the same)",
        "raise parallel.zero_stage, or set parallel.activation_checkpointing=true",
        "or keep optimizer states in host memory: parallel.offload=optimizer",
        "compare the stages first: phalanx plan with the same overrides",
    ),
    Cause.data: (
        "check that data.path is the prepared data that this run started with, and whole",
        "prepare it again if it is damaged: phalanx prepare data.source=... data.path=...",
    ),
    Cause.storage: (
        "free space under the run folder and checkpoint.url, and check that every node may write there",
        "lower checkpoint.keep_last to keep fewer checkpoints",
    ),
    Cause.communication: (
        "name the interface that joins the nodes: cluster.network_interface=...",
        "raise fault.collective_timeout_s if steps really take that long",
    ),
    Cause.user_code: ("read the first failing rank's log; it will fail again until its cause is mended",),
    Cause.node: (
        "look for the kernel's reason on that host: dmesg | grep -i -E 'killed process|xid|ecc'",
        "if it was killed for its memory, lower train.micro_batch_size or cluster.workers_per_node",
    ),
    Cause.hang: (
        "read the stacks of all ranks at the end of their logs: what the rank that is behind waits for is the cause",
        "raise fault.hang_constant_s if steps really stop for that long, or set fault.hang_timeout_factor=0",
    ),
}


def classify(failure: RankFailure) -> Cause:
    """The class of cause: from the rank's own words, and where it had none from the signal that ended it."""
    if failure.is_hung:
        return Cause.hang
    words = _own_words(failure)
    if _FOLLOW_ON.search(words) or _TIMED_OUT.search(words):
        return Cause.communication
    for cause, pattern in _CAUSES:
        if pattern.search(words):
            return cause
    if failure.signal is not None:
        return _SIGNAL_CAUSES.get(failure.signal, Cause.user_code)
    return Cause.user_code if words or failure.exit_code is not None else Cause.node


def _own_words(failure: RankFailure) -> str:
    """What is known about its end: its exception, what the agent found, or what an aborting library printed."""
    if failure.signal == signal.SIGABRT:
        return failure.traceback_tail
    if failure.message:
        return failure.message
    named = [line for line in failure.traceback_tail.splitlines() if _EXCEPTION_LINE.match(line)]
    return named[-1] if named and failure.signal is None else ""


def first_failure(failures: Sequence[RankFailure]) -> RankFailure:
    """The failure that the others follow from: not simply the earliest.

    A rank that ran into an error of its own or was killed comes before one that waited in vain, and that
    before one whose connection broke; among equals the earliest. Errors: ValueError if there is none.
    """
    if not failures:
        raise ValueError("no rank failed: there is nothing to tell")
    return min(failures, key=lambda failure: (_indirectness(failure), failure.time_s, failure.rank))


def _indirectness(failure: RankFailure) -> int:
    """0: failed by itself; 1: waited for others in vain; 2: saw a connection break."""
    if _FOLLOW_ON.search(_own_words(failure)):
        return 2
    return 1 if classify(failure) is Cause.communication else 0


def how_it_ended(failure: RankFailure) -> str:
    """`was killed by signal 9 (SIGKILL)`, or `exited with code 1`, or `was lost`, or `made no progress`."""
    if failure.is_hung:
        return "made no progress"
    if failure.signal is not None:
        return f"was killed by signal {failure.signal} ({signal_name(failure.signal)})"
    if failure.exit_code is not None:
        return f"exited with code {failure.exit_code}"
    return "was lost"


_SIGNAL_WORDS: dict[int, str] = {
    signal.SIGKILL: "from outside, and not for want of memory",
    signal.SIGTERM: "from outside",
    signal.SIGHUP: "from outside",
    signal.SIGINT: "from outside",
    signal.SIGSEGV: "it used memory that is not its own",
    signal.SIGBUS: "mapped memory or a mapped file could not be read",
    signal.SIGABRT: "a library gave up",
}


def end_in_words(number: int | None, stack: Sequence[str]) -> str:
    """What to say of the end of a rank that said nothing itself; empty for an exit code, which says enough.

    That SIGKILL is not the kernel's, for memory, its agent has seen.
    """
    if number is None:
        return ""
    where = f" in {stack[0].strip()}" if stack else ""
    return _SIGNAL_WORDS.get(number, "a signal that nothing in phalanx sends") + where


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def digest(failures: Sequence[RankFailure], *, done: str = "", next_steps: Sequence[str] = ()) -> str:
    """The text that a person reads when a run failed.

    `done` is what was done about it, one sentence; `next_steps` are commands for this run (its log, its
    resume), printed after the cures for the class of cause. Errors: ValueError without failures.
    """
    first = first_failure(failures)
    cause = classify(first)
    lines = [f"rank {first.rank} on {first.node} failed first: it {how_it_ended(first)}; cause: {cause}"]
    lines += [f"    {line}" for line in _five_lines(first)]
    others = [failure for failure in failures if failure is not first]
    if others:
        lines.append(_folded(others))
    if done:
        lines.append(f"done: {done}")
    lines += [f"next: {cure}" for cure in (*CURES[cause], *next_steps)]
    return "\n".join(lines)


def _five_lines(failure: RankFailure) -> list[str]:
    """The last it printed, then the innermost frames, then the exception, as far as they are known."""
    tail = [line.rstrip() for line in failure.traceback_tail.splitlines() if line.strip()]
    tail += [line.rstrip() for line in reversed(failure.stack)]
    message = [line.rstrip() for line in failure.message.splitlines() if line.strip()]
    if message and message[0] not in tail:
        tail += message[:2]
    return tail[-5:] or ["(it printed nothing)"]


def _folded(others: Sequence[RankFailure]) -> str:
    """`3 other ranks failed after it: 2 communication, 1 node (ranks 1-3)`."""
    counts: dict[Cause, int] = {}
    for failure in others:
        counts[classify(failure)] = counts.get(classify(failure), 0) + 1
    causes = ", ".join(f"{count} {cause}" for cause, count in counts.items())
    ranks = sorted({failure.rank for failure in others})
    noun, of = ("rank", "rank") if len(ranks) == 1 else ("ranks", "ranks")
    return f"{len(ranks)} other {noun} failed after it: {causes} ({of} {rank_ranges(ranks)})"


def rank_ranges(ranks: Sequence[int]) -> str:
    """Sorted ranks in short: [0, 1, 2, 5] is `0-2, 5`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in spans)
