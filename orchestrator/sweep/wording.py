"""What a sweep says, as text: the table, a trial's line, the end. Plan half, pure."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from orchestrator.observe.metrics import StepRow
from orchestrator.observe.units import duration_text, plural
from orchestrator.sweep.pbt import line_of
from orchestrator.sweep.pruning import Rungs
from orchestrator.sweep.settings import Metric, Pruner, is_maximised
from orchestrator.sweep.space import parameter_words
from orchestrator.sweep.study import Study, Trial, TrialState

HEADER = ("TRIAL", "STATE", "STEP", "METRIC", "LEFT", "PARAMETERS")


def value_text(value: float | None, metric: Metric) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if metric is Metric.tokens_per_s else f"{value:.4f}"


def table_row(trial: Trial, metric: Metric, row: StepRow | None, steps: int | None) -> tuple[str, ...]:
    """A trial's cells under HEADER; `row`: its newest step while it runs, of `steps`."""
    step, of = (row.step if row else trial.step), "" if steps is None else f"/{steps}"
    value = trial.value
    if row is not None and trial.state is TrialState.running:
        value = getattr(row, metric.value)
    is_going = row is not None and steps is not None and trial.state is TrialState.running
    left = duration_text(row.step_s * (steps - row.step)) if is_going and row and steps else "-"
    words = " ".join(parameter_words(trial.parameters))
    return trial.id, state_text(trial), f"{step}{of}", value_text(value, metric), left, words


def state_text(trial: Trial) -> str:
    """`failed (2)`: how often it failed, where it did."""
    return f"{trial.state} ({trial.failures})" if trial.failures else str(trial.state)


def start_words(trial: Trial) -> str:
    """`goes on`, `starts`, and of a member `starts its round 2 from NAME`."""
    if trial.starts:
        return "goes on"
    if trial.part is None or trial.part.parent is None:
        return "starts"
    return f"starts its round {trial.part.round} from {trial.part.parent}"


def pruning_text(rungs: Rungs, total_steps: int) -> str:
    """`pruning: asha at steps 16, 48`; of Hyperband those of its first bracket, which judges most."""
    if rungs.pruner is Pruner.none:
        return f"pruning: {rungs.pruner}"
    steps = rungs.steps(0, total_steps)
    return f"pruning: {rungs.pruner} at step{'s' * (len(steps) > 1)} {', '.join(f'{step:,}' for step in steps)}"


def counts_text(study: Study) -> str:
    """`24 trials: 3 finished, 2 running, 19 waiting`."""
    counts = Counter(trial.state for trial in study.trials.values())
    parts = ", ".join(f"{counts[state]} {state}" for state in TrialState if counts[state])
    return f"{plural(len(study.trials), 'trial')}: {parts}"


def progress_line(trial: Trial, metric: Metric, row: StepRow, steps: int) -> str:
    """`NAME: step 50/150 | eval_loss 4.2011 | 1m20s left`."""
    value = value_text(getattr(row, metric.value), metric)
    left = duration_text(row.step_s * (steps - row.step))
    return f"{trial.id}: step {row.step}/{steps} | {metric} {value} | {left} left"


def schedule_lines(study: Study, best: Trial) -> list[str]:
    """What the best of a population was trained with, step by step: no single command makes it again."""
    lines = []
    for trial in line_of(study.trials, best):
        steps = trial.part.steps if trial.part is not None else trial.step
        lines.append(f"{'schedule':<12}to step {steps:,}: {shlex.join(parameter_words(trial.parameters))}")
    return lines


def end_lines(study: Study, metric: Metric, base_words: Sequence[str], folders: Mapping[str, str]) -> list[str]:
    """What came out: the best trial, the override line that makes it, the failures."""
    lines = [counts_text(study)]
    best = study.best(maximise=is_maximised(metric))
    if best is None:
        lines.append("best        none: no trial finished with a number")
    else:
        command = shlex.join(["phalanx", "train", *base_words, *parameter_words(best.parameters)])
        lines += [
            f"best        {best.id}: {metric} {value_text(best.value, metric)} after step {best.step}",
            f"overrides   {shlex.join(parameter_words(best.parameters))}",
        ]
        lines += [f"again       {command}"] if best.part is None else schedule_lines(study, best)
    for trial in study.in_state(TrialState.failed):
        lines.append(f"failed      {trial.id}: {trial.reason or 'no reason given'}")
    return lines + [f"{name:<12}{path}" for name, path in folders.items()]
