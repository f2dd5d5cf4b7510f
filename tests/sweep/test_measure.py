"""A trial's metric at a step, from its rows."""

import math
from dataclasses import replace

import pytest
from observe.step_rows import row as step_row

from orchestrator.sweep.measure import metric_at
from orchestrator.sweep.settings import Metric

ROWS = [
    replace(step_row(step), loss=float(step), eval_loss=100.0 + step if step % 4 == 0 else None)
    for step in range(1, 13)
]


@pytest.mark.parametrize(
    ("step", "metric", "window", "value"),
    [
        (12, Metric.loss, 1, 12.0),
        (12, Metric.loss, 3, 11.0),
        (6, Metric.loss, 3, 5.0),
        (2, Metric.loss, 10, 1.5),
        (0, Metric.loss, 10, None),
        (12, Metric.eval_loss, 1, 112.0),
        (11, Metric.eval_loss, 1, 108.0),
        (3, Metric.eval_loss, 1, None),
    ],
)
def test_the_metric_at_a_step(step: int, metric: Metric, window: int, value: float | None) -> None:
    assert metric_at(ROWS, step, metric, window) == value


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_diverged_trial_has_no_value(odd: float) -> None:
    assert metric_at([*ROWS, replace(step_row(13), loss=odd)], 13, Metric.loss, 3) is None
