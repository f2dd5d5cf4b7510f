"""When a run is to be placed anew though nothing has failed: lost nodes are back, or a slow one can be left."""

from orchestrator.control.attempt import Attempt
from orchestrator.control.avoidance import Avoidance
from orchestrator.control.clock import Clock
from orchestrator.fleet.fleet import Fleet

LOOK_S = 2.0


class Growth:
    def __init__(self, fleet: Fleet, avoidance: Avoidance, clock: Clock, interval_s: float) -> None:
        """`interval_s`: how long an attempt trains, at least, before it grows."""
        self._fleet = fleet
        self._avoidance = avoidance
        self._clock = clock
        self._interval_s = interval_s
        self._next_look_s = 0.0
        """Monotonic."""

    def on_first_step(self) -> None:
        self._next_look_s = self._clock.monotonic() + self._interval_s

    def is_possible(self, attempt: Attempt | None) -> bool:
        """Whether an agent is up in place of one that is missing, or the node of a slow rank can be left. Looks now
        and then; ask often."""
        if self._avoidance.is_time_to_leave(attempt):
            return True
        now_s = self._clock.monotonic()
        if not self._fleet.is_short or now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + LOOK_S
        return self._fleet.has_replacements()
