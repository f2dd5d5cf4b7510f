"""What to say about a store that fails, and when: at once, where the cause changes, else every ten minutes. Pure."""

from dataclasses import dataclass
from enum import Enum

REPEAT_S = 600.0


class Say(Enum):
    nothing = 0
    line = 1
    """A line on the console."""
    alert = 2
    """A line, and an alert: an outage begins."""


@dataclass(slots=True)
class StoreHealth:
    """One outage: from the first failure to the next checkpoint that is committed. Times are monotonic seconds."""

    failed_saves: int = 0
    """Checkpoints that were given up in this outage."""
    _since_s: float | None = None
    _said_s: float = 0.0
    _fault: str | None = None

    def failed(self, fault: str | None, now_s: float) -> Say:
        """A try failed with `fault` (of StoreFault; None: no fault of the store's)."""
        is_first = self._since_s is None
        if is_first:
            self._since_s = now_s
        elif fault == self._fault and now_s - self._said_s < REPEAT_S:
            return Say.nothing
        self._said_s, self._fault = now_s, fault
        return Say.alert if is_first else Say.line

    def worked(self, now_s: float) -> float | None:
        """A checkpoint was committed: how long the outage was that this ends, None where there was none."""
        since_s, self._since_s = self._since_s, None
        return None if since_s is None else now_s - since_s
