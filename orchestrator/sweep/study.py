"""What a sweep knows: the fold of study.jsonl, whose order is the order in which things happened. Plan half, pure.

Each decision (a trial added, started, judged at a rung, ended) is a record on disk before it is acted on. So a
driver that is killed at any moment is replaced by one that reads the file.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from orchestrator.codec import decode
from orchestrator.observe.state import RunState
from orchestrator.sweep.space import Parameters


class TrialState(StrEnum):
    waiting = "waiting"
    running = "running"
    interrupted = "interrupted"
    """Stopped or killed on its way; it goes on from its checkpoint."""
    finished = "finished"
    pruned = "pruned"
    """Stopped at a rung; never started again."""
    failed = "failed"


ENDED = frozenset({TrialState.finished, TrialState.pruned, TrialState.failed})


class Record(StrEnum):
    """What a line of study.jsonl says, in its field `event`."""

    trial_added = "trial_added"
    trial_refused = "trial_refused"
    """A suggestion that makes no run."""
    trial_started = "trial_started"
    rung = "rung"
    trial_ended = "trial_ended"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One round of one member of a population (pbt.py)."""

    member: int
    round: int
    """Both from 0."""
    parent: str | None
    """The trial from whose last checkpoint it starts; None in the first round."""
    steps: int
    """train.steps: where the round ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    id: str
    number: int
    """From 0, in the order in which trials were added."""
    parameters: Parameters
    part: Part | None = None
    """Of a population; else None."""
    state: TrialState = TrialState.waiting
    starts: int = 0
    started_s: float | None = None
    """Of the newest start, in unix seconds."""
    failures: int = 0
    step: int = 0
    """Steps done when it last ended."""
    value: float | None = None
    """The metric at its end; None where it has none or was not finite."""
    rungs: Mapping[int, float | None] = field(default_factory=dict)
    """Step -> metric where it was judged."""
    is_condemned: bool = False
    """A rung has decided against it, whether or not it was stopped yet; or it makes no run."""
    reason: str | None = None
    """Of its newest failure."""
    ended_before: int | None = None
    """How many trials there were when it ended: what a suggestion may have known of it."""


@dataclass(slots=True)
class Study:
    trials: dict[str, Trial] = field(default_factory=dict)
    """By id, in the order of their numbers."""
    judged: dict[int, dict[str, float | None]] = field(default_factory=dict)
    """Step of a rung -> trial -> metric, in the order in which the trials came there."""

    def apply(self, record: Mapping[str, Any]) -> None:
        """Take in one record; one about a trial that is not known, or of a newer version's kind, changes nothing."""
        name = record.get("trial")
        if record.get("event") == Record.trial_added:
            part = None if record.get("part") is None else decode(Part, record["part"])
            self.trials[str(name)] = Trial(
                id=str(name), number=len(self.trials), parameters=dict(record["parameters"]), part=part
            )
        elif name in self.trials:
            if record["event"] == Record.rung:
                self.judged.setdefault(int(record["step"]), {})[str(name)] = record["value"]
            self.trials[str(name)] = _after(self.trials[str(name)], record, len(self.trials))

    def in_state(self, *states: TrialState) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.state in states]

    def best(self, *, maximise: bool) -> Trial | None:
        """The finished trial with the best value, of a population in its newest round: earlier ones have read other
        data. Of equals the one with the lower number."""
        done = [(trial.value, trial) for trial in self.in_state(TrialState.finished) if trial.value is not None]
        newest = max((trial.part.round for _, trial in done if trial.part is not None), default=None)
        done = [pair for pair in done if pair[1].part is None or pair[1].part.round == newest]
        sign = -1.0 if maximise else 1.0
        return min(done, key=lambda pair: (sign * pair[0], pair[1].number))[1] if done else None


def read_study(records: Iterable[Mapping[str, Any]]) -> Study:
    study = Study()
    for record in records:
        study.apply(record)
    return study


def trial_id(sweep_id: str, parameters: Parameters) -> str:
    """`SWEEP-1f0c9a3e`: follows from the parameters alone, in whatever order; the sweep's id keeps W&B runs apart."""
    canonical = json.dumps(parameters, sort_keys=True, separators=(",", ":"))
    return f"{sweep_id}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial's process ended."""

    state: TrialState
    is_failure: bool = False
    """Counts against sweep.max_retries."""


def outcome(run: RunState, trial: Trial, *, step: int, is_stopping: bool, max_retries: int) -> Outcome:
    """What the end of a trial's process means, from its run folder's state and the steps it has.

    `is_stopping`: the sweep itself told it to stop, or its Ray was lost. A process that was killed is no failure if
    it had got further than before: it goes on from its checkpoint.
    """
    if run is RunState.finished:
        return Outcome(TrialState.finished)
    if trial.is_condemned:
        return Outcome(TrialState.pruned)
    if run is RunState.preempted or is_stopping:
        return Outcome(TrialState.interrupted)
    if run is not RunState.failed and step > trial.step:
        return Outcome(TrialState.interrupted)
    is_last = trial.failures + 1 > max_retries
    return Outcome(TrialState.failed if is_last else TrialState.interrupted, is_failure=True)


def is_startable(trial: Trial, max_retries: int) -> bool:
    """Whether it waits, was interrupted, or failed within a budget that may have been raised since."""
    if trial.is_condemned:
        return False
    if trial.state is TrialState.failed:
        return trial.failures <= max_retries
    return trial.state in (TrialState.waiting, TrialState.interrupted)


def _after(trial: Trial, record: Mapping[str, Any], known: int) -> Trial:
    match record["event"]:
        case Record.trial_refused:
            return replace(
                trial, state=TrialState.failed, is_condemned=True, reason=record["reason"], ended_before=known
            )
        case Record.trial_started:
            starts, started_s = trial.starts + 1, record.get("t")
            return replace(trial, state=TrialState.running, starts=starts, started_s=started_s, ended_before=None)
        case Record.rung:
            rungs = {**trial.rungs, int(record["step"]): record["value"]}
            return replace(trial, rungs=rungs, is_condemned=trial.is_condemned or not record["goes_on"])
        case Record.trial_ended:
            return replace(
                trial,
                state=TrialState(record["state"]),
                failures=trial.failures + bool(record["is_failure"]),
                step=int(record["step"]),
                value=record["value"],
                reason=record["reason"],
                ended_before=known,
            )
    return trial
