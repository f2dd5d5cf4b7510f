"""Judges trials at their rungs and at their end, by what their run folders say."""

from orchestrator.observe.metrics import surviving_rows
from orchestrator.observe.state import RunState, RunStatus, run_state
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.measure import metric_at
from orchestrator.sweep.pruning import goes_on
from orchestrator.sweep.recipe import Recipe
from orchestrator.sweep.settings import is_maximised
from orchestrator.sweep.study import Record, Trial, outcome
from orchestrator.sweep.studylog import StudyLog


class Judge:
    def __init__(self, folder: SweepFolder, recipe: Recipe, log: StudyLog) -> None:
        self._folder = folder
        self._recipe = recipe
        self._log = log
        self._rungs = recipe.rungs

    def at_rungs(self, trial: Trial, step: int, total_steps: int) -> Trial:
        """Judge a trial that has done `step` at each rung passed and not yet judged; returns it as it is then.

        Recorded at once: a decision is never made a second time, by whichever driver.
        """
        for rung in self._rungs.steps(trial.number, total_steps):
            if rung > step or trial.is_condemned:
                break
            if rung in trial.rungs:
                continue
            value = self._measure(trial, rung)
            judged = self._log.study.judged.get(rung, {})
            rivals = {name: other for name, other in judged.items() if self._is_rival(name, trial, total_steps)}
            stays = goes_on(
                trial.id,
                {**rivals, trial.id: value},
                self._recipe.settings.reduction_factor,
                maximise=is_maximised(self._recipe.metric),
            )
            trial = self._log.record(Record.rung, trial, step=rung, value=value, goes_on=stays)
        return trial

    def at_end(self, trial: Trial, *, is_stopping: bool) -> Trial:
        """Record what the end of a trial's process means; returns the trial as it is then."""
        status = run_state(self._folder.trial(trial.id))
        result = outcome(
            _since(trial, status),
            trial,
            step=status.step,
            is_stopping=is_stopping,
            max_retries=self._recipe.settings.max_retries,
        )
        return self._log.record(
            Record.trial_ended,
            trial,
            state=str(result.state),
            is_failure=result.is_failure,
            step=status.step,
            value=self._measure(trial, status.step),
            reason=self._last_line(trial) if result.is_failure else None,
        )

    def _measure(self, trial: Trial, step: int) -> float | None:
        rows = list(surviving_rows(self._folder.trial(trial.id).metrics).values())
        return metric_at(rows, step, self._recipe.metric, self._recipe.settings.window_steps)

    def _is_rival(self, name: str, trial: Trial, total_steps: int) -> bool:
        """Whether two trials climb the same rungs: those of another bracket were selected otherwise."""
        number = self._log.study.trials[name].number
        return self._rungs.steps(number, total_steps) == self._rungs.steps(trial.number, total_steps)

    def _last_line(self, trial: Trial) -> str | None:
        log = self._folder.log(trial.id)
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return lines[-1] if lines else None


def _since(trial: Trial, status: RunStatus) -> RunState:
    """The run's state as far as the trial's newest start made it: one that has died before it said anything has not
    been told to stop, though an earlier one was."""
    is_silent = None not in (trial.started_s, status.last_event_s) and status.last_event_s < trial.started_s
    return RunState.interrupted if is_silent and status.state is RunState.preempted else status.state
