"""Where the driver takes time from: the machine's clocks, or the virtual one of a simulation."""

import time
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds that only ever grow, for durations."""

    def time(self) -> float:
        """Unix seconds, for records: may jump where somebody sets the clock."""


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()


SYSTEM_CLOCK = SystemClock()
