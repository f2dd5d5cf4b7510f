"""Which checkpoints are kept. Plan half: no disk access."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MetricOf = Callable[[int], float | None]
"""Step -> what the model is judged by there, lower is better; None where it was not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """A checkpoint is kept if any of these keeps it."""

    keep_last: int
    """The newest n; 0 keeps all."""
    keep_every_steps: int = 0
    """Those of every k-th step, for good; 0 none."""
    keep_best: int = 0
    """The n with the lowest metric; 0 none."""

    def __post_init__(self) -> None:
        for name, least in (("keep_last", "keep all"), ("keep_every_steps", "none"), ("keep_best", "none")):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 ({least}) or more")


def checkpoints_to_delete(
    committed_steps: Iterable[int], retention: Retention, metric_of: MetricOf | None = None
) -> list[int]:
    """Steps that retention gives up, oldest first. The newest is never among them.

    Of equal metrics the newer step counts as better; steps without one, or with one that is not finite, are never
    among the best.
    """
    steps = sorted(set(committed_steps))
    if not retention.keep_last:
        return []
    kept = set(steps[-retention.keep_last :])
    if retention.keep_every_steps:
        kept |= {step for step in steps if step % retention.keep_every_steps == 0}
    if retention.keep_best and metric_of is not None:
        measured = [
            (value, -step) for step in steps if (value := metric_of(step)) is not None and math.isfinite(value)
        ]
        kept |= {-step for _, step in sorted(measured)[: retention.keep_best]}
    return [step for step in steps if step not in kept]
