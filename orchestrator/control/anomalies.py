"""When the numbers of a step are not to be trusted: what is wrong with them, and how far back is safe. Plan half.

Every rank sees the same values (they are reduced over all ranks), so every rank comes to the same verdict.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

MAD_TO_SIGMA = 1.4826
"""A normal distribution's standard deviation is so many times its median absolute deviation."""
LEAST_SIGMA = 1e-3
"""As a share of the median: losses that hardly vary are no reason to call a small rise a spike."""


class Kind(StrEnum):
    loss_not_finite = "loss_not_finite"
    grad_norm_not_finite = "grad_norm_not_finite"
    loss_spike = "loss_spike"
    replicas_differ = "replicas_differ"
    """Ranks that hold the same parameters hold different bits."""
    step_not_repeatable = "step_not_repeatable"
    """A step that was done again from its snapshot came out otherwise."""

    @property
    def is_of_data(self) -> bool:
        """Whether the window that the step read may be to blame, and is skipped."""
        return self in (Kind.loss_not_finite, Kind.grad_norm_not_finite, Kind.loss_spike)


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What all ranks agree is wrong with a step."""

    kind: Kind
    step: int
    """Steps done, the bad one included."""
    good_step: int
    """The newest step whose state nothing speaks against."""
    message: str
    """One sentence for a person, without the step."""
    ranks: tuple[int, ...] = ()
    """Those that are known to be wrong."""


class LossWatch:
    """Judges each step's loss and gradient norm; the window of losses goes with the training state."""

    def __init__(self, *, spike_threshold: float, spike_window: int, recent: Iterable[float] = ()) -> None:
        """`spike_threshold`: so many robust standard deviations above the median of the last `spike_window` losses
        are a spike; 0 looks for none. `recent` is what `recent` was at the step that was restored."""
        self._threshold = spike_threshold
        self._recent: deque[float] = deque(recent, maxlen=spike_window)

    @property
    def recent(self) -> list[float]:
        """Losses of the last steps, oldest first; empty where no spikes are looked for."""
        return list(self._recent)

    def look(self, step: int, loss: float, grad_norm: float, *, is_scaled_down: bool = False) -> Anomaly | None:
        """The verdict on step `step`, whose update may have been made already.

        `is_scaled_down`: the fp16 loss scaler found an overflow, left the update out and lowers its scale: the
        gradient norm of that step says nothing.
        """
        if not math.isfinite(loss):
            return Anomaly(Kind.loss_not_finite, step, step - 1, f"the loss is {loss}")
        if not math.isfinite(grad_norm) and not is_scaled_down:
            return Anomaly(Kind.grad_norm_not_finite, step, step - 1, f"the gradient norm is {grad_norm}")
        if not self._threshold:
            return None
        score = spike_score(loss, self._recent) if len(self._recent) == self._recent.maxlen else 0.0
        if score > self._threshold:
            middle = median(self._recent)
            words = (
                f"the loss is {loss:.4f}, {score:.1f} robust standard deviations above {middle:.4f}, the median of "
                f"the last {len(self._recent)} steps"
            )
            return Anomaly(Kind.loss_spike, step, step - 1, words)
        self._recent.append(loss)
        return None


def spike_score(value: float, recent: Sequence[float] | deque[float]) -> float:
    """How far `value` lies above the median of `recent`, in standard deviations estimated from the median absolute
    deviation (Iglewicz and Hoaglin, "How to detect and handle outliers", 1993): what spikes before it can't hide it.
    """
    middle = median(recent)
    deviation = MAD_TO_SIGMA * median(abs(other - middle) for other in recent)
    sigma = max(deviation, LEAST_SIGMA * abs(middle))
    rise = value - middle
    return rise / sigma if sigma > 0 else math.copysign(math.inf, rise) if rise else 0.0


def compare_replicas(checksums: Sequence[int], step: int, good_step: int) -> Anomaly | None:
    """The verdict on the ranks' checksums of what all of them hold alike; of three or more the odd ones are named."""
    counts = Counter(checksums)
    if len(counts) == 1:
        return None
    (common, most), *_ = counts.most_common()
    odd = tuple(rank for rank, checksum in enumerate(checksums) if checksum != common)
    if most * 2 <= len(checksums):
        words = f"the parameters of {len(checksums)} ranks differ, and no majority says which are right"
        return Anomaly(Kind.replicas_differ, step, good_step, words)
    who = f"rank {odd[0]} holds" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))} hold"
    words = f"{who} other parameters than the {most} ranks that agree"
    return Anomaly(Kind.replicas_differ, step, good_step, words, odd)
