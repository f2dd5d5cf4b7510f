"""A sweep on the screen: a live table on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.observe.metrics import StepRow
from orchestrator.sweep.settings import Metric
from orchestrator.sweep.study import ENDED, Study, Trial, TrialState
from orchestrator.sweep.wording import HEADER, counts_text, progress_line, table_row

TENTHS = 10
"""Without a terminal a trial says so many times how far it is."""
STYLES = {
    TrialState.running: "cyan",
    TrialState.finished: "green",
    TrialState.pruned: "dim",
    TrialState.failed: "red",
    TrialState.interrupted: "yellow",
}
ENDED_SHOWN = 8
"""The table shows so many of the trials that have ended, the newest."""


class SweepTable:
    """Watches a sweep for a person; a stream that can't be written any more silences it."""

    def __init__(self, stream: TextIO, is_terminal: bool, metric: Metric) -> None:
        self._stream = stream
        self._metric = metric
        self._told: dict[str, int] = {}
        self._is_silent = False
        self._console = Console(file=stream, force_terminal=True, highlight=False) if is_terminal else None
        # Without a thread of rich's own: trials are forked from this process.
        self._live = Live(console=self._console, auto_refresh=False) if self._console else None
        if self._live is not None:
            self._guarded(self._live.start)

    def note(self, text: str) -> None:
        console = self._console
        if console is not None:
            self._guarded(lambda: console.print(Text(text), soft_wrap=True))
        else:
            self._guarded(lambda: print(text, file=self._stream, flush=True))

    def trial(self, trial: Trial, words: str) -> None:
        value = "" if trial.value is None or trial.state not in ENDED else f" | {self._metric} {trial.value:.4f}"
        parameters = " ".join(f"{key}={text}" for key, text in trial.parameters.items())
        self.note(f"{trial.id} {words}{value} | {parameters}")

    def progress(self, study: Study, rows: Mapping[str, StepRow], steps: Mapping[str, int]) -> None:
        live = self._live
        if live is not None:
            self._guarded(lambda: live.update(self._table(study, rows, steps), refresh=True))
            return
        for name, row in rows.items():
            tenth = row.step * TENTHS // steps[name]
            if tenth > self._told.get(name, 0):
                self._told[name] = tenth
                self.note(progress_line(study.trials[name], self._metric, row, steps[name]))

    def close(self) -> None:
        """Twice is harmless."""
        live, self._live = self._live, None
        if live is not None:
            self._guarded(live.stop)

    def _table(self, study: Study, rows: Mapping[str, StepRow], steps: Mapping[str, int]) -> Table:
        made = Table(*HEADER, title=counts_text(study), title_justify="left", box=None)
        for trial in _shown(list(study.trials.values())):
            cells = table_row(trial, self._metric, rows.get(trial.id), steps.get(trial.id))
            made.add_row(*cells, style=STYLES.get(trial.state, ""))
        return made

    def _guarded(self, write: Callable[[], object]) -> None:
        """`phalanx sweep | head` must not end the sweep."""
        if self._is_silent:
            return
        try:
            write()
        except (OSError, ValueError):
            self._is_silent = True


def _shown(trials: Sequence[Trial]) -> list[Trial]:
    """What goes on, and the trials that ended last; the waiting ones are only counted."""
    ended = [trial for trial in trials if trial.state in ENDED][-ENDED_SHOWN:]
    going = [trial for trial in trials if trial.state in (TrialState.running, TrialState.interrupted)]
    return sorted([*ended, *going], key=lambda trial: trial.number)
