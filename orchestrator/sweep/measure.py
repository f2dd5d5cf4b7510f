"""What a trial's metric is at a step, from the rows of its metrics.jsonl. Plan half."""

import math
from collections.abc import Sequence
from statistics import fmean

from orchestrator.observe.metrics import StepRow
from orchestrator.sweep.settings import Metric

EVALUATED = frozenset({Metric.eval_loss, Metric.eval_bits_per_byte})


def metric_at(rows: Sequence[StepRow], step: int, metric: Metric, window_steps: int) -> float | None:
    """The metric after `step`: of the last evaluation, or the mean over the last `window_steps`.

    None where no row has it yet, or it is NaN or infinite: the trial has diverged. `rows` ascend in steps.
    """
    upto = [row for row in rows if row.step <= step]
    if metric in EVALUATED:
        values = [value for row in upto if (value := getattr(row, metric.value)) is not None][-1:]
    else:
        values = [getattr(row, metric.value) for row in upto if row.step > step - window_steps]
    if not values:
        return None
    mean = fmean(values)
    return mean if math.isfinite(mean) else None
