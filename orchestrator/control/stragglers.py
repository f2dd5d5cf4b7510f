"""Ranks that are slow but move: all others wait for them at every collective. Plan half.

Every step each rank says what it spent on what, without the time in which it waited for others. A rank is compared
with the median of the others, phase by phase, and named where it is out of line in nearly all of the last steps: one
slow step, or a slow minute of the whole cluster, is nobody's fault.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW = 32
"""Steps that are looked at together."""
SETTLING = 3
"""First steps of an attempt, which are never typical."""
LEAST_SHARE_OF_STEP = 0.1
"""What a rank takes longer than the others must be worth so much of the step: nobody waits long for less."""
PERSISTENT = 0.8
"""Share of the window in which it must be slow to be named."""
RECOVERED = 0.5
"""Below this share it is not slow any more, and may be named again."""
REPEAT_STEPS = 1000
"""A rank that stays slow is named again after so many steps."""
_LEAST_S = 1e-6
_REPORTED = itemgetter("step_s", "data_s", "snapshot_s", "keep_s", "wait_s")

PHASES = {
    "data": "waiting for data",
    "compute": "forward, backward and update",
    "snapshot": "waiting for its snapshot",
    "saving": "beginning a snapshot",
}
"""Phase -> in words."""


@dataclass(frozen=True, slots=True)
class Straggler:
    """A rank that the others keep waiting for."""

    rank: int
    phase: str
    factor: float
    """How many times the others' median it takes for this phase: the median over the window."""
    excess_s: float
    """Seconds that it takes longer in each step: the median over the window."""

    def message(self) -> str:
        """One sentence for a person, without rank and host."""
        return (
            f"takes {self.factor:.2g} times as long as the others for {PHASES[self.phase]}: {self.excess_s:.2g} s "
            f"of each of the last {WINDOW} steps"
        )


def straggler_fields(straggler: Straggler, host: str) -> dict[str, Any]:
    """What the `straggler` event says beside the step."""
    return {
        "rank": straggler.rank,
        "node": host,
        "phase": straggler.phase,
        "factor": round(straggler.factor, 3),
        "seconds": straggler.excess_s,
        "message": straggler.message(),
    }


def spent_s(reports: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """[ranks, phases] seconds of the ranks' step reports in which each kept others waiting rather than waited."""
    reported = np.array([*map(_REPORTED, reports)], dtype=np.float64)
    step_s, data_s, snapshot_s, keep_s, wait_s = reported.T
    compute_s = np.maximum(0.0, step_s - (data_s + snapshot_s + wait_s))
    return np.stack([data_s, compute_s, snapshot_s, keep_s], axis=1)


class StragglerWatch:
    """Of one attempt."""

    def __init__(self, factor: float, evict_after_steps: int = 0) -> None:
        """`factor`: a rank that takes so many times as long as the median is slow; 0 looks for none. One that is
        named and still slow `evict_after_steps` later is `persistent`; 0 never."""
        self.persistent: Straggler | None = None
        """The last one found so."""
        self._factor = factor
        self._evict_after_steps = evict_after_steps
        self._first_named: dict[tuple[int, str], tuple[int, Straggler]] = {}
        self._steps = 0
        self._ratios: deque[NDArray[np.float64]] = deque(maxlen=WINDOW)
        self._excess_s: deque[NDArray[np.float64]] = deque(maxlen=WINDOW)
        self._slow: deque[NDArray[np.bool_]] = deque(maxlen=WINDOW)
        self._named_at: dict[tuple[int, str], int] = {}

    def look(self, reports: Sequence[Mapping[str, Any]]) -> list[Straggler]:
        """Ranks to name after this step, from every rank's report of it in rank order."""
        self._steps += 1
        if not self._factor or len(reports) < 2 or self._steps <= SETTLING:
            return []
        seconds = spent_s(reports)
        usual = others_median(seconds)
        excess_s = seconds - usual
        step_s = max(map(itemgetter("step_s"), reports))
        ratios = seconds / np.maximum(usual, _LEAST_S)
        self._ratios.append(ratios)
        self._excess_s.append(excess_s)
        self._slow.append((ratios > self._factor) & (excess_s > LEAST_SHARE_OF_STEP * step_s))
        if len(self._slow) < WINDOW:
            return []
        share = np.mean(self._slow, axis=0)
        return self._to_name(share)

    def _to_name(self, share: NDArray[np.float64]) -> list[Straggler]:
        """`share` [ranks, phases] of the window in which each was slow."""
        names = list(PHASES)
        for rank, phase in list(self._named_at):
            if share[rank, names.index(phase)] < RECOVERED:
                del self._named_at[rank, phase], self._first_named[rank, phase]
        found = []
        for rank, index in np.argwhere(share >= PERSISTENT).tolist():
            named_at = self._named_at.get((rank, names[index]))
            if named_at is None or self._steps - named_at >= REPEAT_STEPS:
                self._named_at[rank, names[index]] = self._steps
                factor = float(np.median([ratios[rank, index] for ratios in self._ratios]))
                excess_s = float(np.median([excess[rank, index] for excess in self._excess_s]))
                found.append(Straggler(rank, names[index], factor, excess_s))
                self._first_named.setdefault((rank, names[index]), (self._steps, found[-1]))
        if self._evict_after_steps:
            since = min(self._first_named.values(), key=lambda entry: entry[0], default=None)
            is_long = since is not None and self._steps - since[0] >= self._evict_after_steps
            self.persistent = since[1] if since is not None and is_long else None
        return found


def others_median(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each rank the median of the other ranks: [ranks, phases] from [ranks, phases], by one sort."""
    ranks = len(seconds)
    order = np.sort(seconds, axis=0)
    position = np.argsort(np.argsort(seconds, axis=0, kind="stable"), axis=0, kind="stable")
    low, high = (ranks - 2) // 2, (ranks - 1) // 2  # of the ranks - 1 others, once the rank itself is taken out

    def without_itself(index: int) -> NDArray[np.float64]:
        taken: NDArray[np.float64] = np.take_along_axis(order, index + (position <= index), axis=0)
        return taken

    return (without_itself(low) + without_itself(high)) / 2
