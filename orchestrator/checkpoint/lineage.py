"""Branches of a run: a rollback leaves the steps after its point behind. Plan half.

Attempts are numbered in the order in which they ran, so what an attempt made says by its number which rollbacks came
after it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fork:
    """A rollback: what attempts up to `attempt` did after `at_step` is not part of the run any more."""

    attempt: int
    """The one in which the anomaly was seen."""
    at_step: int
    """The newest step that the branches share."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Every rollback of a run, oldest first; none: nothing was ever left behind."""

    forks: tuple[Fork, ...] = ()

    def survives(self, attempt: int, step: int) -> bool:
        """Whether what `attempt` made of `step` belongs to the newest branch."""
        return all(step <= fork.at_step for fork in self.forks if attempt <= fork.attempt)

    def is_shared(self, step: int) -> bool:
        """Whether `step` belongs to the newest branch whoever made it."""
        return all(step <= fork.at_step for fork in self.forks)


WHOLE = Lineage()
"""Of a run without a rollback."""
