"""Snapshots on their way out of this node's memory, to storage or to the peer; the rank is told of each one's end."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from orchestrator.agent.channel import Message
from orchestrator.agent.rankhandle import RankHandle
from orchestrator.agent.sending import Peer
from orchestrator.agent.slotkeeper import PersistJob, SlotKeeper
from orchestrator.checkpoint.retry import ANY, PASSING, Patience


class Transfers:
    def __init__(
        self,
        slots: SlotKeeper,
        ranks: Callable[[], Iterable[RankHandle]],
        emit: Callable[[RankHandle, dict[str, Any]], None],
    ) -> None:
        """`ranks`: those that there are; `emit` makes an event of what concerns one of them."""
        self.peer: Peer | None = None
        self._slots = slots
        self._ranks = ranks
        self._emit = emit

    def persist(self, rank: RankHandle, message: Message) -> None:
        """Tell first, release then: a rank that was released knows that the controller will hear of it."""
        job = PersistJob(
            rank=rank.rank,
            world_size=message["world_size"],
            attempt=rank.attempt,
            slot=message["slot"],
            step=message["step"],
            url=message["url"],
            is_disk=message["is_disk"],
            is_last=message["is_last"],
            is_encrypted=message["is_encrypted"],
            key_file=message["key_file"],
            patience=Patience(message["timeout_s"], ANY if message["is_last"] else PASSING),
        )

        def on_done(event: dict[str, Any]) -> None:
            self._emit(rank, event)
            for living in self._of_rank(rank.rank):
                step = job.step if living is rank else None
                _tell(living, {"kind": "persisted", "slot": job.slot, "step": step, "is_disk": job.is_disk})

        self._slots.persist(job, on_done, on_delay=lambda event: self._emit(rank, event))

    def replicate(self, rank: RankHandle, message: Message) -> None:
        assert self.peer is not None

        def on_done(is_copied: bool) -> None:
            for living in self._of_rank(rank.rank):
                step = message["step"] if is_copied and living is rank else None
                _tell(living, {"kind": "replicated", "slot": message["slot"], "step": step})

        self._slots.replicate(rank.share, message["slot"], self.peer, on_done)

    def _of_rank(self, number: int) -> list[RankHandle]:
        return [rank for rank in self._ranks() if rank.rank == number]


def _tell(rank: RankHandle, message: Message) -> None:
    with contextlib.suppress(OSError):  # one that is dead is told of by its exit
        rank.channel.send(message)
