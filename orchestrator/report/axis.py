"""Scales of a plot: values to pixels, and the round numbers to write beside them. Plan half, pure."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.observe.units import count_text

LOG_FROM_RATIO = 100.0
"""Positive values that span more than this are drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps `low`..`high` to `start`..`end`, in pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    step: float | None = None
    """Between ticks; None lets `ticks` choose."""

    def place(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.is_log else v for v in (self.low, self.high, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values between `low` and `high`, `most` of them or fewer where the axis has no step of its own."""
        if self.is_log:
            return _log_ticks(self.low, self.high, most)
        step = self.step or _round_step((self.high - self.low) / max(1, most - 1) or 1.0)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def value_axis(
    low: float, high: float, start: float, end: float, *, from_zero: bool = False, intervals: int = 5
) -> Axis:
    """An axis that holds the values `low` to `high` in about so many intervals; its ends are ticks.

    Logarithmic where positive values span more than `LOG_FROM_RATIO`, unless it starts `from_zero`.
    """
    if low > 0 and high / low > LOG_FROM_RATIO and not from_zero:
        return Axis(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)), start, end, is_log=True)
    low = min(0.0, low) if from_zero else low
    if high <= low:
        room = abs(high) * 0.1 or 1.0
        low, high = (low, high + room) if from_zero else (low - room, high + room)
    step = _round_step((high - low) / intervals)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Axis(low, high, start, end, step=step)


def tick_words(ticks: list[float]) -> Callable[[float], str]:
    """How to write these ticks: all with the digits that tell neighbours apart."""
    largest = max(map(abs, ticks), default=0.0)
    gaps = [after - before for before, after in itertools.pairwise(ticks)]
    gap = min(gaps, default=largest or 1.0)
    if largest and (largest < 1e-2 or max(gaps, default=0.0) > 3 * gap > 0 > math.log10(gap) + 1):
        return _small_words
    if largest >= 1e6:
        return _large_words
    digits = max(0, -math.floor(math.log10(gap) + 1e-9)) if gap > 0 else 0
    return lambda value: f"{value:,.{digits}f}"


def _large_words(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value / 1e6:,g} M" if abs(value) < 1e9 else count_text(value)


def _small_words(value: float) -> str:
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _round_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / most))
    return [10.0**power for power in range(first, last + 1, every)]
