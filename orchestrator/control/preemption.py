"""Notices that a machine will be taken away: signals to the driver, and Ray's drain of a node that the run is on."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.observe.units import duration_text

LEAVE_S = 2.0
"""What the driver needs to stop its ranks and to end."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Ray was told that a node will go."""

    host: str
    seconds_left: float | None
    """When it was noticed; None where no deadline was given."""


class Preemptions:
    """Counts notices: the first drains the run, the second ends it at once.

    However many come from Ray, they count as one, and so does a signal beside them. Where the time that is left is up
    and the run has not left yet, that is the second: better ended by itself than killed.
    """

    def __init__(
        self,
        count_signals: Callable[[], int],
        drain: Callable[[], Drain | None],
        grace_s: float | None,
        say: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`grace_s` is the time from a signal to the end, where it is known; `say` tells a person."""
        self._count_signals = count_signals
        self._drain = drain
        self._grace_s = grace_s
        self._say = say
        self._monotonic = monotonic
        self._until_s: float | None = None
        self._was_noticed = False

    def __call__(self) -> int:
        signals, drain = self._count_signals(), self._drain()
        count = max(signals, 0 if drain is None else 1)
        if count and not self._was_noticed:
            self._was_noticed = True
            self._begin(drain)
        if count == 1 and self._until_s is not None and self._monotonic() >= self._until_s:
            return 2
        return count

    def _begin(self, drain: Drain | None) -> None:
        left_s = self._grace_s if drain is None else drain.seconds_left
        if left_s is not None:
            self._until_s = self._monotonic() + max(0.0, left_s - LEAVE_S)
        if drain is not None:
            when = "" if left_s is None else f" in {duration_text(max(0.0, left_s))}"
            self._say(f"node {drain.host} will be taken away{when} (Ray drains it): saving, then leaving")


class UntakenNotices:
    """Those that are still to be acted on, one after the other."""

    def __init__(self, count_notices: Callable[[], int]) -> None:
        self._count_notices = count_notices
        self._taken = 0

    def are_there(self) -> bool:
        return self._taken < self._count_notices()

    def take(self) -> bool:
        """Whether there was one; it is acted on from here on."""
        is_there = self.are_there()
        self._taken += is_there
        return is_there
