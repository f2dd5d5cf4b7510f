"""Where the time of a run went: every microsecond from its first start to its last sign is booked once. Plan half.

A cursor moves forward over the run's time; what it passes is booked, and it never goes back. So the parts sum to the
wall time exactly, whatever the records say and however the clocks of driver and ranks disagree.

The same ledger is kept by the driver as it goes, by `phalanx status` from the run folder, and by `phalanx simulate`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.observe.metrics import StepRow

_US = 1_000_000


class Spent(StrEnum):
    productive = "productive"
    """Steps that were done for the first time."""
    recomputed = "recomputed"
    """Steps that had been done before: a failure or a rollback had lost them, or they were checked."""
    data_wait = "data_wait"
    """Of either, the part in which the slowest rank waited for its batch."""
    snapshot_stall = "snapshot_stall"
    """Training stood still for a snapshot."""
    checkpoint = "checkpoint"
    """Training had ended, and waited until its last checkpoint was in storage."""
    evaluation = "evaluation"
    start = "start"
    """From a driver's start, after an end in order, to the start of its first step."""
    recovery = "recovery"
    """From the last step that was done before a failure to the start of the first one after it."""
    idle = "idle"
    """No driver was there, or nothing is known of that time."""


LOST_ATTEMPT = frozenset({"rank_died", "node_lost", "hang_detected", "anomaly", "rollback"})
"""Events from which on the attempt's ranks do nothing that counts."""
SAVE_ENDS = frozenset({"checkpoint_committed", "checkpoint_failed"})
RUN_ENDS = frozenset({"run_finished", "run_failed"})


@dataclass(frozen=True, slots=True)
class Goodput:
    """A closed account."""

    spent_us: Mapping[Spent, int]
    """Every part, also those that are 0; together exactly `wall_us`."""
    begun_us: int
    """Unix time."""
    ended_us: int

    @property
    def wall_us(self) -> int:
        return self.ended_us - self.begun_us

    @property
    def wall_s(self) -> float:
        return self.wall_us / _US

    @property
    def ratio(self) -> float | None:
        """The productive share of the wall time, 0 to 1; None where no time has passed."""
        return self.spent_us[Spent.productive] / self.wall_us if self.wall_us else None

    def seconds(self) -> dict[str, float]:
        return {str(part): us / _US for part, us in self.spent_us.items()}


class GoodputLedger:
    """Takes events and rows in the order in which they came to be."""

    def __init__(self) -> None:
        self._spent_us = dict.fromkeys(Spent, 0)
        self._cursor_us: int | None = None
        self._begun_us = 0
        self._seen_us = 0
        """The newest sign of life of the attempt under way."""
        self._waiting = Spent.start
        """What passes while no step is under way."""
        self._is_training = False
        self._is_leaving = False
        self._has_ended = True
        """Whether the last driver ended in order."""
        self._attempt = 0
        self._step = 0
        """The newest step of that attempt."""
        self._newest_step = 0
        """Of any attempt."""
        self._step_us = 0
        """What its last step took."""

    def event(self, record: Mapping[str, Any]) -> None:
        """An event as events.jsonl has it."""
        t_us = _microseconds(record["t"])
        if "driver_started_s" in record:
            self._begin_driver(_microseconds(record["driver_started_s"]))
        self._pass(t_us if self._cursor_us is None else self._cursor_us)
        name = record["event"]
        if name == "attempt_started":
            self._begin_attempt(t_us, record["attempt"], record.get("resume_step") or record["step"] or 0)
        elif name in LOST_ATTEMPT:
            self._lose_attempt(t_us, record["step"])
        elif name == "preemption_notice":
            self._is_leaving = True
        elif name in RUN_ENDS or (name in SAVE_ENDS and self._is_left_with(record["step"])):
            self._end(t_us)
        if record["attempt"] == self._attempt:
            self._seen_us = max(self._seen_us, t_us)

    def row(self, row: StepRow) -> None:
        """A row of metrics.jsonl; where rows are left out, one stands for all since the one before."""
        if row.attempt < self._attempt:
            return  # a late word of an attempt whose time is booked
        if row.attempt > self._attempt:
            self._attempt, self._step, self._is_training = row.attempt, row.step - 1, False
        count = row.step - self._step
        if count <= 0:  # the step that the attempt was restored to, told again
            self._newest_step = max(self._newest_step, row.step)
            return
        step_us = max(0, _microseconds(row.step_s))
        passed_us = self._pass(self._end_of(row, step_us))
        is_one = count == 1 or not self._is_training
        worked_us = min(passed_us, count * step_us) if is_one else passed_us
        self._book_before_step(passed_us - worked_us, row.keep_s or 0.0, row.recheck_s or 0.0)
        self._book_steps(worked_us, step_us, row, count)
        self._attempt, self._step, self._step_us = row.attempt, row.step, step_us
        self._newest_step = max(self._newest_step, row.step)
        self._is_training, self._has_ended = True, False
        if row.eval_s is not None and self._cursor_us is not None:
            evaluated_us = self._pass(self._cursor_us + max(0, _microseconds(row.eval_s)))
            self._spent_us[Spent.evaluation] += evaluated_us
        self._seen_us = max(self._seen_us, self._booked_until_us)

    @property
    def ratio(self) -> float | None:
        """Goodput so far, up to the last step or restart."""
        return Goodput(self._spent_us, self._begun_us, self._booked_until_us).ratio

    @property
    def _booked_until_us(self) -> int:
        return self._begun_us if self._cursor_us is None else self._cursor_us

    def closed(self, now_s: float | None = None) -> Goodput:
        """The account up to the last sign of life, or to `now_s` (unix seconds) where a driver is alive."""
        spent_us, cursor_us = dict(self._spent_us), self._booked_until_us
        is_open = now_s is not None and self._cursor_us is not None
        end_us = max(cursor_us, _microseconds(now_s or 0.0) if is_open else self._seen_us)
        left_us = end_us - cursor_us
        if self._is_training:
            under_way_us = min(left_us, self._step_us)
            spent_us[Spent.productive] += under_way_us
            left_us -= under_way_us
        spent_us[Spent.idle if self._is_training else self._waiting] += left_us
        return Goodput(spent_us, self._begun_us, end_us)

    def _is_left_with(self, step: int | None) -> bool:
        """Whether a checkpoint of `step` is the last thing that a drained attempt waited for."""
        return self._is_leaving and self._is_training and step == self._step

    def _begin_driver(self, started_us: int) -> None:
        if self._cursor_us is not None and not self._has_ended:  # the one before was killed
            self._spent_us[Spent.recovery] += self._pass(self._seen_us)
        self._spent_us[Spent.idle] += self._pass(started_us)
        self._waiting = Spent.start if self._has_ended else Spent.recovery
        self._is_training = self._is_leaving = self._has_ended = False

    def _begin_attempt(self, t_us: int, attempt: int, resume_step: int) -> None:
        self._spent_us[self._waiting] += self._pass(t_us)
        if self._is_training:  # replaced while it was alive
            self._waiting = Spent.recovery
        self._is_training = self._has_ended = False
        self._attempt, self._step, self._seen_us = attempt, resume_step, t_us

    def _lose_attempt(self, t_us: int, step: int | None) -> None:
        passed_us = self._pass(t_us)
        if self._is_training:
            left_out = max(0, (step or 0) - self._step)  # steps whose rows were left out
            worked_us = min(passed_us, left_out * self._step_us)
            is_new = self._step + left_out > self._newest_step
            self._spent_us[Spent.productive if is_new else Spent.recomputed] += worked_us
            self._newest_step = max(self._newest_step, self._step + left_out)
            self._spent_us[Spent.recovery] += passed_us - worked_us
        else:
            self._spent_us[self._waiting] += passed_us
        self._waiting = Spent.idle if self._has_ended else Spent.recovery
        self._is_training = False

    def _end(self, t_us: int) -> None:
        self._spent_us[Spent.checkpoint if self._is_training else self._waiting] += self._pass(t_us)
        self._waiting, self._has_ended = Spent.idle, True
        self._is_training = self._is_leaving = False

    def _pass(self, t_us: int) -> int:
        """Move the cursor to `t_us`, never back; returns how far."""
        if self._cursor_us is None:
            self._cursor_us = self._begun_us = self._seen_us = t_us
        passed_us = max(0, t_us - self._cursor_us)
        self._cursor_us += passed_us
        return passed_us

    def _end_of(self, row: StepRow, step_us: int) -> int:
        if row.time is not None and math.isfinite(row.time):
            return _microseconds(row.time)
        return (self._cursor_us or 0) + step_us

    def _book_before_step(self, us: int, keep_s: float, recheck_s: float) -> None:
        if not self._is_training:
            self._spent_us[self._waiting] += us
            return
        keep_us = min(us, max(0, _microseconds(keep_s)))
        again_us = min(us - keep_us, max(0, _microseconds(recheck_s)))
        self._spent_us[Spent.snapshot_stall] += keep_us
        self._spent_us[Spent.recomputed] += again_us
        self._spent_us[Spent.idle] += us - keep_us - again_us

    def _book_steps(self, worked_us: int, step_us: int, row: StepRow, count: int) -> None:
        """Data wait and snapshot stall by their share of the row's step; the rest by which steps are new."""
        data_us = worked_us * _clipped(row.data_s, step_us) // step_us if step_us else 0
        left_us = worked_us - data_us
        stall_us = min(left_us, worked_us * _clipped(row.snapshot_s or 0.0, step_us) // step_us) if step_us else 0
        left_us -= stall_us
        again = min(count, max(0, self._newest_step - self._step))
        again_us = left_us * again // count
        self._spent_us[Spent.data_wait] += data_us
        self._spent_us[Spent.snapshot_stall] += stall_us
        self._spent_us[Spent.recomputed] += again_us
        self._spent_us[Spent.productive] += left_us - again_us


def goodput_ledger(events: Iterable[Mapping[str, Any]], rows: Iterable[StepRow]) -> GoodputLedger:
    """The ledger of a run's two files, each in the order written."""
    ledger = GoodputLedger()
    for record in in_order(events, rows):
        if isinstance(record, StepRow):
            ledger.row(record)
        else:
            ledger.event(record)
    return ledger


def in_order(events: Iterable[Mapping[str, Any]], rows: Iterable[StepRow]) -> Iterator[Mapping[str, Any] | StepRow]:
    """By time, but an attempt's rows come after its start and before the next one's, whatever the clocks say."""
    waiting = iter(rows)
    row = next(waiting, None)
    for event in events:
        while row is not None and _is_before(row, event):
            yield row
            row = next(waiting, None)
        yield event
    while row is not None:
        yield row
        row = next(waiting, None)


def _is_before(row: StepRow, event: Mapping[str, Any]) -> bool:
    attempt = event["attempt"]  # 0: what a driver says before its first attempt
    if attempt and row.attempt != attempt:
        return bool(row.attempt < attempt)
    if event["event"] in ("run_started", "attempt_started"):
        return False
    return row.time is None or row.time <= event["t"]


def _clipped(seconds: float, most_us: int) -> int:
    return min(most_us, max(0, _microseconds(seconds)))


def _microseconds(seconds: float) -> int:
    return round(seconds * _US) if math.isfinite(seconds) else 0
