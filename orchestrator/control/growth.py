"""When a run that goes on without lost nodes looks for others."""

from orchestrator.control.clock import Clock
from orchestrator.fleet.fleet import Fleet

LOOK_S = 2.0


class Growth:
    def __init__(self, fleet: Fleet, clock: Clock, interval_s: float) -> None:
        """`interval_s`: how long an attempt trains, at least."""
        self._fleet = fleet
        self._clock = clock
        self._interval_s = interval_s
        self._next_look_s = 0.0
        """Monotonic."""

    def on_first_step(self) -> None:
        self._next_look_s = self._clock.monotonic() + self._interval_s

    def is_possible(self) -> bool:
        """Whether agents are up in place of all that are missing. Looks now and then; ask often."""
        now_s = self._clock.monotonic()
        if not self._fleet.is_short or now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + LOOK_S
        return self._fleet.has_replacements()
