"""What to say about a store that fails, and when: each cause at once, and again every ten minutes. Pure."""

from dataclasses import dataclass, field
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
    _said_s: dict[str | None, float] = field(default_factory=dict)
    """fault -> when it was last said."""

    @property
    def is_failing(self) -> bool:
        return self._since_s is not None

    def failed(self, fault: str | None, now_s: float) -> Say:
        """A try failed with `fault` (of StoreFault; None: no fault of the store's)."""
        is_first = self._since_s is None
        if is_first:
            self._since_s, self._said_s = now_s, {}
        elif fault in self._said_s and now_s - self._said_s[fault] < REPEAT_S:
            return Say.nothing
        self._said_s[fault] = now_s
        return Say.alert if is_first else Say.line

    def worked(self, now_s: float) -> float | None:
        """A checkpoint was committed: how long the outage was that this ends, None where there was none."""
        since_s, self._since_s = self._since_s, None
        return None if since_s is None else now_s - since_s
