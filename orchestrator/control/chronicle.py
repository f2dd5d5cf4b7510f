"""Everything that is told about a run, to whom it concerns: ledger, metrics, console, W&B, rank logs."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TextIO

from orchestrator.control.clock import SYSTEM_CLOCK, Clock
from orchestrator.observe.console import Console
from orchestrator.observe.eyes import Eyes
from orchestrator.observe.goodput import goodput_ledger
from orchestrator.observe.gpus import GpuWatch
from orchestrator.observe.ledger import Ledger, read_events
from orchestrator.observe.metrics import MetricsLog, StepRow, read_rows
from orchestrator.observe.tracking import Tracker
from orchestrator.observe.wandb_values import summary_values
from orchestrator.observe.wording import event_line
from orchestrator.runfolder import RunFolder

TOLD_AS_ALERT = {
    "rank_died": ("a rank died", "WARN"),
    "hang_detected": ("ranks hang", "WARN"),
    "node_lost": ("a node was lost", "WARN"),
    "anomaly": ("the numbers are bad", "WARN"),
    "straggler": ("a rank is slow", "WARN"),
    "gpu_fault": ("a GPU is not well", "WARN"),
    "preemption_notice": ("the run was told to stop", "INFO"),
    "run_failed": ("the run failed", "ERROR"),
}
"""Event -> title and W&B's level."""


class Chronicle:
    """One writer for each file; `close` once."""

    def __init__(
        self,
        folder: RunFolder,
        console: Console,
        tracker: Tracker,
        every_steps: int,
        *,
        driver_started_s: float,
        clock: Clock = SYSTEM_CLOCK,
        eyes: Eyes | None = None,
    ) -> None:
        """`driver_started_s`, in unix seconds, is told by the first event of this driver."""
        self._eyes = eyes or Eyes()
        self.console = console
        self.tracker = tracker
        self.tokens = 0
        self.last_row: StepRow | None = None
        self.goodput = goodput_ledger(read_events(folder.events), read_rows(folder.metrics))
        self._gpus = GpuWatch()
        self._first_fields = {"driver_started_s": driver_started_s}
        self._folder = folder
        self._every_steps = every_steps
        self._ledger = Ledger(folder.events, clock.time)
        self._metrics = MetricsLog(folder.metrics)
        self._rank_logs: dict[tuple[int, int], TextIO] = {}

    def event(self, name: str, attempt: int, step: int | None, *, is_told: bool = True, **fields: Any) -> None:
        """`is_told=False`: for the ledger and W&B; a person has heard it often enough."""
        first_fields, self._first_fields = self._first_fields, {}
        record = self._ledger.append(name, attempt, step, **fields, **first_fields)
        self.goodput.event(record)
        if is_told:
            self.console.event(record)
        self.tracker.event(record)
        self._eyes.event(record)
        if name in TOLD_AS_ALERT:
            title, level = TOLD_AS_ALERT[name]
            self.tracker.alert(title, str(fields.get("digest") or event_line(record) or title), level)
        self._tell_notices()

    def alert(self, title: str, text: str) -> None:
        """A warning that should find a person who is not watching."""
        self.console.warn(text)
        self.tracker.alert(title, text)

    def row(self, row: StepRow, is_last: bool) -> None:
        """A finished step. Every `tracking.every_steps`-th is kept, and always the last and the evaluated ones."""
        self.tokens += row.tokens
        self.goodput.row(row)
        row = replace(row, goodput=self.goodput.ratio, **self._gpus.row_fields())
        self.last_row = row
        if row.step % self._every_steps == 0 or is_last or row.eval_loss is not None:
            self._metrics.append(row)
            self.tracker.log(row)
            self._eyes.row(row)
        self.console.step(row)

    def ranks(self, reports: Sequence[Mapping[str, Any]]) -> None:
        """Every rank's report of a step, in rank order; its row follows."""
        faults = self._gpus.hear(reports)
        if self._eyes.are_open:
            self._eyes.ranks([{**report, "gpu": self._gpus.newest(rank)} for rank, report in enumerate(reports)])
        for fault in faults:
            self.event("gpu_fault", reports[0]["attempt"], reports[0]["step"], **fault)

    def output(self, message: Mapping[str, Any]) -> None:
        """A line that a rank printed. Errors: OSError that names the file."""
        key = message["attempt"], message["rank"]
        path = self._folder.rank_log(*key)
        if key not in self._rank_logs:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._rank_logs[key] = path.open("a", buffering=1)
        try:
            self._rank_logs[key].write(message["text"])
        except OSError as error:
            error.filename = str(path)
            raise

    def end_attempt(self) -> None:
        for log in self._rank_logs.values():
            with contextlib.suppress(OSError):  # what is left of a line that found no space
                log.close()
        self._rank_logs.clear()

    def close(self, exit_code: int) -> None:
        self.end_attempt()
        self._ledger.close()
        self._metrics.close()
        self.tracker.summarise(summary_values(self.goodput.closed()))
        self.console.close()
        self._eyes.close()
        self.tracker.close(exit_code)
        self._tell_notices()

    def _tell_notices(self) -> None:
        for notice in (*self.tracker.take_notices(), *self._eyes.take_notices()):
            self.console.note(notice)
