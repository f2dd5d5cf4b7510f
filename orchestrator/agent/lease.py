"""An agent's lease: how long it may go on without a word from its driver. Plan half.

No clock of its own: whoever looks says how much time has passed. Time in which nobody could look (a suspended
machine, a stopped process) counts only in part, because the driver could not be heard then.
"""

from dataclasses import dataclass
from enum import StrEnum

MAX_INTERVALS_PER_LOOK = 2
"""A look that comes later than this was not possible earlier: the rest does not count."""


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    timeout_s: float
    """Without a word for so long the ranks are stopped."""
    grace_s: float
    """And so much longer until everything is released."""


class Verdict(StrEnum):
    held = "held"
    lapsed = "lapsed"
    """No rank may live; what the ranks left in memory is kept."""
    ended = "ended"
    """Nothing is kept any more. For good."""


class Lease:
    def __init__(self, terms: LeaseTerms) -> None:
        self.terms = terms
        self.silent_s = 0.0
        """Since the driver's last word."""

    def renew(self) -> None:
        self.silent_s = 0.0

    def look(self, elapsed_s: float, interval_s: float) -> Verdict:
        """`elapsed_s` have passed since the last look, where `interval_s` were meant to."""
        self.silent_s += max(0.0, min(elapsed_s, MAX_INTERVALS_PER_LOOK * interval_s))
        if self.silent_s < self.terms.timeout_s:
            return Verdict.held
        return Verdict.lapsed if self.silent_s < self.terms.timeout_s + self.terms.grace_s else Verdict.ended
