"""How long a rank took from its fork to the end of its first step, phase by phase."""

import time


class Stopwatch:
    """Laps one after the other: each begins where the one before ended, the first one now."""

    def __init__(self) -> None:
        self.laps_s: dict[str, float] = {}
        """Phase -> seconds, in order."""
        self._last_s = time.perf_counter()

    def lap(self, phase: str) -> None:
        """`phase` ends here."""
        now_s = time.perf_counter()
        self.laps_s[phase] = now_s - self._last_s
        self._last_s = now_s
