"""What a model has seen, as one value: so that a state restored from the wrong place can be told. Plan half."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.data.order import Rows, window_of_step


class Trained(NamedTuple):
    """What a model has seen: as much of its state as can be checked."""

    step: int
    windows_sum: int
    """Of the windows that it was trained on, each once for each time."""


def trained_on(start: Trained, steps: int, skipped: Sequence[int] = ()) -> Trained:
    """`start` after the windows of further steps, by the order formula."""
    end = start.step + steps
    if not steps:
        return start
    first, last = window_of_step(start.step, skipped), window_of_step(end - 1, skipped)
    total = (first + last) * (last - first + 1) // 2 - sum(w for w in set(skipped) if first <= w <= last)
    return Trained(end, start.windows_sum + total)


def digest_of(rows: Rows) -> str:
    """16 hexadecimal digits of the rows' sum, each mixed so that no other rows have it by chance."""
    mixed = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xD1B54A32D192ED03)
    mixed ^= mixed >> np.uint64(29)
    return f"{int(mixed.sum(dtype=np.uint64)):016x}"
