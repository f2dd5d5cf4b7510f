"""What a person sees while a run goes on: rich on a terminal, plain lines elsewhere."""

from collections import deque
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from orchestrator.observe.metrics import StepRow
from orchestrator.observe.units import duration_text
from orchestrator.observe.wording import (
    EndFacts,
    StartFacts,
    end_lines,
    eta_s,
    evaluation_line,
    event_line,
    percent,
    since_last_line,
    summary_lines,
    training_line,
)
from orchestrator.spec import RunPlan

_RECENT_STEPS = 50
_STYLES = {
    "rank_died": "bold red",
    "node_lost": "bold red",
    "hang_detected": "bold red",
    "anomaly": "bold red",
    "rollback": "yellow",
    "straggler": "yellow",
    "checkpoint_failed": "red",
    "checkpoint_rejected": "red",
    "attempt_started": "yellow",
    "preemption_notice": "yellow",
    "recovered": "green",
    "checkpoint_committed": "dim",
}


class _Terminal(RichConsole):
    def on_broken_pipe(self) -> None:
        """Rich's own ends the process."""
        self.quiet = True


class Console:
    """Prints to `stream`; one that can't be written any more (a closed pipe) silences it: the run goes on.

    A training line comes every `every_steps` steps, at the first row of each attempt and at the last step.
    """

    def __init__(self, stream: TextIO, is_terminal: bool, *, every_steps: int = 10) -> None:
        self._every_steps = max(1, every_steps)
        self._stream = stream
        # Lines are never folded: a line is what grep finds.
        self._rich = (
            _Terminal(file=stream, force_terminal=True, highlight=False, soft_wrap=True) if is_terminal else None
        )
        self._bar: Progress | None = None
        self._recent_step_s: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._unshown: list[StepRow] = []
        """Since the last training line."""
        self._last_attempt: int | None = None
        self._steps = 0
        self._memory_limit_bytes: int | None = None
        self._is_silent = False

    def start(self, plan: RunPlan, facts: StartFacts, *, memory_limit_bytes: int | None = None) -> None:
        """The summary; the training lines take their total and the limit of a rank's memory from here."""
        self._steps = plan.steps
        self._memory_limit_bytes = memory_limit_bytes
        self._box("phalanx", summary_lines(plan, facts), "cyan")

    def step(self, row: StepRow) -> None:
        """Call for every row: it knows which ones are printed."""
        if row.attempt != self._last_attempt:
            self._recent_step_s.clear()
            self._unshown = []
        self._recent_step_s.append(row.step_s)
        self._unshown.append(row)
        left_s = eta_s(self._recent_step_s, self._steps - row.step)
        if row.attempt != self._last_attempt or row.step % self._every_steps == 0 or row.step == self._steps:
            limit = self._memory_limit_bytes
            shown, self._unshown = since_last_line(self._unshown), []
            self._print(training_line(shown, steps=self._steps, eta_s=left_s, memory_limit_bytes=limit))
        self._last_attempt = row.attempt
        evaluation = evaluation_line(row)
        if evaluation:
            self._print(evaluation, "bold")
        self._move_bar(row, left_s or 0.0)

    def event(self, record: Mapping[str, Any]) -> None:
        """An event as the ledger returned it."""
        words = event_line(record)
        if words:
            self._print(words, _STYLES.get(record["event"], ""))

    def note(self, text: str) -> None:
        """A line of its own, such as what W&B has to say."""
        self._print(text)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}", "yellow")

    def failure(self, digest: str) -> None:
        """The digest of a failed run (failure.digest)."""
        self.close()
        self._box("the run failed", digest.splitlines(), "red")

    def end(self, facts: EndFacts) -> None:
        self.close()
        self._box(
            "done" if facts.is_finished else "stopped",
            end_lines(facts),
            "green" if facts.is_finished else "yellow",
        )

    def close(self) -> None:
        """Takes the bar away. Twice is harmless."""
        bar, self._bar = self._bar, None
        if bar is not None:
            self._guarded(bar.stop)

    def _move_bar(self, row: StepRow, left_s: float) -> None:
        if self._rich is None or self._is_silent:
            return
        words = f"{percent(row.step, self._steps)}  loss {row.loss:.4f}  {duration_text(left_s)} left"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=row.step, description=words)
            return
        columns = (
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(*columns, console=self._rich, transient=True, refresh_per_second=4)
        self._bar.add_task(words, total=self._steps, completed=row.step)
        self._guarded(self._bar.start)

    def _box(self, title: str, lines: list[str], colour: str) -> None:
        rich = self._rich
        if rich is not None:
            panel = Panel(Text("\n".join(lines)), title=title, title_align="left", border_style=colour)
            self._guarded(lambda: rich.print(panel, soft_wrap=False))
        else:
            for line in (f"== {title}", *lines):
                self._print(line)

    def _print(self, line: str, style: str = "") -> None:
        rich = self._rich
        if rich is not None:
            self._guarded(lambda: rich.print(Text(line, style=style)))
        else:
            self._guarded(lambda: print(line, file=self._stream, flush=True))

    def _guarded(self, write: Any) -> None:
        """`phalanx train | head` must not end the run."""
        if self._is_silent:
            return
        try:
            write()
        except (OSError, ValueError):
            self._is_silent = True
            self._bar = None
