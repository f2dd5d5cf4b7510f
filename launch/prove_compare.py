"""Whether two runs were the same run: what each step did, and what came out. No effects."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.config import Precision
from orchestrator.observe.metrics import StepRow
from orchestrator.observe.units import plural

TOLERANCE = {Precision.fp32: 1e-5, Precision.bf16: 5e-3, Precision.fp16: 5e-3}
"""Relative, of the loss at another world size without dropout: what the order of sums may change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """What a run did."""

    rows: Mapping[int, StepRow]
    """Step -> the row that counts."""
    final_digest: str
    """Over the logical tensors of its last checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    what: str
    is_equal: bool
    detail: str


def same_world_checks(run: Course, reference: Course) -> list[Check]:
    """At the same world size everything is equal to the last bit."""
    exact: dict[str, Callable[[StepRow], Any]] = {
        "samples": lambda row: (row.batch_digest, row.tokens),
        "learning rate": lambda row: row.lr,
        "random numbers": lambda row: row.rng_digest,
        "loss": lambda row: repr(row.loss),
        "gradient norm": lambda row: repr(row.grad_norm),
    }
    checks = [_exact(what, of, run, reference) for what, of in exact.items()]
    return [_steps(run, reference), *checks, _digest(run, reference)]


def other_world_checks(run: Course, reference: Course, precision: Precision) -> list[Check]:
    """At another world size the samples and learning rates are equal, the loss within the tolerance."""
    return [
        _steps(run, reference),
        _exact("samples", lambda row: (row.batch_digest, row.tokens), run, reference),
        _exact("learning rate", lambda row: row.lr, run, reference),
        _close("loss", run, reference, TOLERANCE[precision]),
    ]


def _steps(run: Course, reference: Course) -> Check:
    is_equal = list(run.rows) == list(reference.rows) and bool(run.rows)
    last, other = max(run.rows, default=0), max(reference.rows, default=0)
    detail = f"{plural(last, 'step')}, each once" if is_equal else f"{last} against {other}, or some are missing"
    return Check(what="steps", is_equal=is_equal, detail=detail)


def _exact(what: str, of: Callable[[StepRow], Any], run: Course, reference: Course) -> Check:
    for step, row in reference.rows.items():
        mine, theirs = of(run.rows[step]) if step in run.rows else "nothing", of(row)
        if mine != theirs:
            return Check(what=what, is_equal=False, detail=f"differs first at step {step}: {mine}, not {theirs}")
    return Check(what=what, is_equal=True, detail="equal at every step")


def _close(what: str, run: Course, reference: Course, tolerance: float) -> Check:
    most, at = 0.0, 0
    for step, row in reference.rows.items():
        mine = run.rows[step].loss if step in run.rows else math.nan
        difference = abs(mine - row.loss) / abs(row.loss) if mine != row.loss else 0.0
        if not difference <= most:  # NaN differs from everything
            most, at = difference, step
        if math.isnan(most):
            break
    detail = f"at most {most:.1e} apart, relative; {tolerance:g} is allowed" + (f" (step {at})" if at else "")
    return Check(what=what, is_equal=most <= tolerance, detail=detail)


def _digest(run: Course, reference: Course) -> Check:
    is_equal = run.final_digest == reference.final_digest
    detail = run.final_digest if is_equal else f"{run.final_digest}, not {reference.final_digest}"
    return Check(what="final checkpoint", is_equal=is_equal, detail=detail)
