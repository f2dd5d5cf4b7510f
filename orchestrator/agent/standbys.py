"""Standby ranks: forked ahead of the attempt that will use them, joined to each other, their engines built.

An attempt that begins with them needs no fork, no rendezvous and no engine, only the state: the larger part of a
recovery is over before anything fails. They are one world: one that dies makes the others useless.
"""

import time
from typing import Any

from orchestrator.agent.rankhandle import KILLED, RankHandle


class Standbys:
    """Those of one node. The agent calls under its own lock."""

    def __init__(self) -> None:
        self._ranks: dict[str, RankHandle] = {}
        """Label -> rank; those that have been given up stay until they are gone."""
        self._attempt: int | None = None

    def add(self, label: str, rank: RankHandle) -> None:
        self._ranks[label] = rank
        self._attempt = rank.attempt

    def find(self, label: str) -> RankHandle | None:
        return self._ranks.get(label)

    @property
    def ranks(self) -> list[RankHandle]:
        return list(self._ranks.values())

    def forget(self, rank: RankHandle) -> bool:
        """It is gone. Whether it was still wanted."""
        for label in [label for label, known in self._ranks.items() if known is rank]:
            del self._ranks[label]
        return not rank.is_given_up

    def take(self, standby: int, attempt: int) -> dict[str, RankHandle]:
        """Label -> rank of those that were forked during attempt `standby`; from here on ranks of `attempt`."""
        if standby != self._attempt:
            return {}
        found = {label: rank for label, rank in self._ranks.items() if not rank.is_given_up}
        for label, rank in found.items():
            del self._ranks[label]
            rank.attempt, rank.is_standby = attempt, False
        return found

    def give_up(self) -> list[int]:
        """Pids to kill now; one whose pid is not known yet is killed once it is."""
        wanted = [rank for rank in self._ranks.values() if not rank.is_given_up]
        for rank in wanted:
            rank.is_given_up = True
        return [rank.pid for rank in wanted if rank.pid is not None]


def lost_standby() -> dict[str, Any]:
    """The end of a rank whose standby had died when its attempt began."""
    end = {key: KILLED[key] for key in ("exit_code", "signal", "is_stopped")}
    reason = "it died while it stood by for this attempt"
    return {"kind": "exited", **end, "tail": [], "stack": [], "reason": reason, "time": time.time()}
