"""One attempt of a run, as the controller sees it: what its ranks have said so far. No effects."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.agent.watchdog import PHASE_WORDS, Hang
from orchestrator.control.collect import Gathering
from orchestrator.control.stragglers import Straggler, StragglerWatch
from orchestrator.observe.failure import RankFailure, classify, end_in_words, first_failure
from orchestrator.observe.metrics import StepRow
from orchestrator.spec import ResumePoint

Message = dict[str, Any]


@dataclass(slots=True)
class Attempt:
    number: int
    resume: ResumePoint
    world_size: int
    started_s: float
    """Monotonic."""
    straggler_watch: StragglerWatch
    steps: Gathering = field(init=False)
    saves: Gathering = field(init=False)
    evaluations: Gathering = field(init=False)
    disk_saves: Gathering = field(init=False)
    """What the ranks' agents have written to their nodes' own disks."""
    repeats: Gathering = field(init=False)
    """Reports of the step that the ranks were restored to."""
    dones: dict[int, Message] = field(default_factory=dict)
    """rank -> its `done`."""
    held_rows: dict[int, StepRow] = field(default_factory=dict)
    """Rows that wait for their evaluation, by step."""
    said: dict[int, Message] = field(default_factory=dict)
    """rank -> its `failed`."""
    failures: list[RankFailure] = field(default_factory=list)
    last_step: int = 0
    """Newest step done by every rank."""
    saving_step: int | None = None
    failed_saves: set[int] = field(default_factory=set)
    """Steps whose checkpoint at least one rank could not write."""
    losses: dict[int, float] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)
    """Ranks that have left because of an anomaly."""
    stragglers: list[Straggler] = field(default_factory=list)
    """To be told of."""
    hung_in: str | None = None
    """The phase in which the attempt hung."""

    def __post_init__(self) -> None:
        self.steps, self.saves, self.disk_saves = (Gathering(self.world_size) for _ in range(3))
        self.evaluations = Gathering(self.world_size)
        self.repeats = Gathering(self.resume.world_size or self.world_size)
        self.last_step = self.resume.step

    @property
    def has_stepped(self) -> bool:
        return self.last_step > self.resume.step

    @property
    def is_start_untimed(self) -> bool:
        """It has begun to train, or begins with an evaluation, which only its watchdogs know the usual time of."""
        return self.has_stepped or self.resume.owes_evaluation

    @property
    def is_done(self) -> bool:
        return len(self.dones) == self.world_size

    @property
    def is_drained(self) -> bool:
        return any(done["is_drained"] for done in self.dones.values())

    @property
    def is_paused(self) -> bool:
        return any(done.get("is_paused") for done in self.dones.values())

    def ended_well(self, message: Message) -> bool:
        """Whether a rank's `exited` is the end that was expected."""
        is_expected = message["rank"] in self.dones or message["rank"] in self.left
        return bool(message["is_stopped"]) or (is_expected and message["exit_code"] == 0)

    def add_failure(self, message: Message, host: str) -> RankFailure:
        """From a rank's `exited` and what it had said before."""
        said = self.said.get(message["rank"], {})
        unsaid: str = message["reason"] or end_in_words(message["signal"], message["stack"])
        if message["exit_code"] == 0:
            unsaid = "it left before the last step"
        failure = RankFailure(
            rank=message["rank"],
            node=host,
            time_s=message["time"],
            exit_code=message["exit_code"],
            signal=message["signal"],
            message=said["message"] if said else unsaid,
            traceback_tail="\n".join(message["tail"]),
            stack=tuple(message["stack"]) if message["signal"] is not None else (),
        )
        self.failures.append(failure)
        return failure

    def add_hang(self, hang: Hang, host: str, time_s: float, stack: Sequence[str]) -> RankFailure:
        """The rank that the others wait for; `stack` has its innermost frames, where it could be asked."""
        failure = RankFailure(
            rank=hang.first.rank, node=host, time_s=time_s, is_hung=True, message=hang.message(), stack=tuple(stack)
        )
        self.failures.append(failure)
        self.hung_in = PHASE_WORDS[hang.first.position.phase]
        return failure

    def add_lost_node(self, ranks: Sequence[int], host: str, time_s: float) -> None:
        """Its ranks ended with it, and can't tell."""
        self.failures += [RankFailure(rank=rank, node=host, time_s=time_s) for rank in ranks]

    @property
    def first_failure(self) -> RankFailure:
        """The one that the others follow from; there must be one."""
        return first_failure(self.failures)

    def too_late_digest(self, limit_s: float) -> str:
        return (
            f"attempt {self.number} did no step in worker.start_timeout_s={limit_s:g}; see its rank logs, or raise "
            "the limit"
        )

    def signature(self) -> str:
        """Equal for failures that would only happen again: the same error at the same step.

        A signal comes from outside and says nothing of the kind, so each one is its own.
        """
        if not self.failures:
            return f"attempt {self.number}"
        first = self.first_failure
        if first.signal is not None:
            return f"attempt {self.number}: signal {first.signal}"
        if first.is_hung:
            return f"step {self.last_step}: hang of rank {first.rank} in {self.hung_in}"
        return f"step {self.last_step}: {classify(first)}: {first.message.splitlines()[:1]}"
