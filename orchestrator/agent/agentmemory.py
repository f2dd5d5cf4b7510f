"""What one node's agent holds in memory: its ranks' snapshots, and copies of those of another node."""

import contextlib
import os
from collections.abc import Sequence

from orchestrator.agent.channel import Message
from orchestrator.agent.peers import PeerCopies, fetch_copy
from orchestrator.agent.rankhandle import RankHandle
from orchestrator.agent.slotkeeper import SlotKeeper
from orchestrator.checkpoint.slots import Share, Slot
from orchestrator.errors import CheckpointError
from orchestrator.rank.shares import WantedShares


class AgentMemory:
    def __init__(self, address: str) -> None:
        """`address` is where other nodes ask for it."""
        self.slots = SlotKeeper()
        self.copies = PeerCopies(address, self.slots.find)
        self._wanted: WantedShares | None = None

    def keep_only(self, step: int | None, world_size: int, attempt: int, *, is_resized: bool) -> None:
        """Before `attempt`, of so many ranks, which starts from `step`, of another world where it `is_resized`."""
        self._wanted = None
        self.slots.keep_only(step, world_size, is_resized=is_resized)
        self.copies.keep_only(step, world_size, attempt, is_resized=is_resized)

    def forget_other_worlds(self, world_size: int) -> None:
        self.slots.forget_other_worlds(world_size)
        self.copies.forget_other_worlds(world_size)

    def adopt(self, secret: str, copies: Sequence[tuple[Share, int, tuple[str, int]]]) -> None:
        """Fetch each (share, step, peer). Raises CheckpointError."""
        for share, step, peer in copies:
            self.slots.adopt(share, fetch_copy(peer, secret, share, step))

    def show(self, wanted: WantedShares) -> None:
        """What `hand_shares` tells the next attempt's ranks of."""
        self._wanted = wanted

    def reports(self, world_size: int, step: int) -> dict[int, Message]:
        """rank of a world -> what it had reported of `step`, of those whose snapshot or copy is here."""
        found = {}
        for rank in range(world_size):
            descriptor = self._find(Share(world_size, rank), step)
            if descriptor is not None:
                with contextlib.suppress(CheckpointError):  # who restores from it says that it is damaged
                    found[rank] = Slot(descriptor).small()["report"]
                os.close(descriptor)
        return found

    def hand_slots(self, rank: RankHandle, wanted: Message) -> None:
        try:
            descriptors, held = self.slots.slots_for(rank.share, wanted["slot_bytes"], wanted["count"])
        except CheckpointError as error:
            rank.channel.send_descriptors({"kind": "slots", "problem": str(error)}, [])
            return
        what = {"kind": "slots", "held": held, "copied_step": self.slots.copied_step(rank.share), "problem": None}
        rank.channel.send_descriptors(what, descriptors)

    def hand_shares(self, rank: RankHandle) -> None:
        """Another world's snapshots: what is here as descriptors, and where the rest is."""
        wanted, here = self._wanted, {}
        assert wanted is not None
        for number, _ in wanted.holders:
            descriptor = self._find(Share(wanted.world_size, number), wanted.step)
            if descriptor is not None:
                here[number] = descriptor
        message = {
            "kind": "shares",
            "here": list(here),
            "elsewhere": [holder for holder in wanted.holders if holder[0] not in here],
            "secret": wanted.secret,
        }
        try:
            rank.channel.send_descriptors(message, list(here.values()))
        finally:
            for descriptor in here.values():
                os.close(descriptor)

    def _find(self, share: Share, step: int) -> int | None:
        descriptor = self.slots.find(share, step)
        return self.copies.find(share, step) if descriptor is None else descriptor

    def num_bytes(self) -> int:
        """Of all slots and copies: their pages exist from the beginning."""
        return self.slots.num_bytes() + self.copies.num_bytes()

    def close(self) -> None:
        self.slots.close()
        self.copies.close()
