"""Which ranks stand by for the next attempt, as the driver hears it. No effects."""

from dataclasses import dataclass, field
from typing import Any

from orchestrator.spec import Placement, ResumePoint

STANDBY_KINDS = ("standing_by", "standby_lost")


@dataclass(slots=True)
class StandbyWorld:
    attempt: int
    """During which they were forked."""
    placement: Placement
    """What they were forked for: they have joined each other at this world size."""
    ready: set[int] = field(default_factory=set)
    is_whole: bool = True
    """None has died. A group that has lost a member is of no use."""

    def hear(self, event: dict[str, Any]) -> None:
        if event["attempt"] != self.attempt:
            return
        if event["kind"] == "standing_by":
            self.ready.add(event["rank"])
        elif event["kind"] == "standby_lost":
            self.is_whole = False

    def can_begin(self, resume: ResumePoint, placement: Placement) -> bool:
        """Whether the attempt can begin with them: all are ready, for this placement, and it restores a state (their
        weights were left unset)."""
        is_complete = self.is_whole and len(self.ready) == len(placement.ranks)
        return is_complete and placement == self.placement and resume.source != "start"
