"""What an agent tells a rank while it trains: to drain, that a slot has been copied, which slots are the rank's."""

from collections.abc import Callable
from enum import IntEnum

from orchestrator.agent.channel import Channel, Message
from orchestrator.checkpoint.slots import Slot
from orchestrator.errors import CheckpointError


class Asked(IntEnum):
    """What the ranks are asked to do at a step boundary; the larger outranks."""

    nothing = 0
    pause = 1
    """Leave, with a snapshot in memory."""
    drain = 2
    """Leave, with a checkpoint in storage."""


class Inbox:
    """Read by the training thread only."""

    def __init__(self, channel: Channel) -> None:
        self.asked = Asked.nothing
        self._on_persisted: Callable[[int, int | None, bool], None] | None = None
        self._on_replicated: Callable[[int, int | None], None] | None = None
        self._early: list[Message] = []
        """Ends of transfers that came before anybody listened."""
        self._slots: tuple[Message, list[int]] | None = None
        """The agent's answer, with its descriptors."""
        self._shares: tuple[Message, list[int]] | None = None
        self._channel = channel

    def listen(
        self,
        on_persisted: Callable[[int, int | None, bool], None],
        on_replicated: Callable[[int, int | None], None],
    ) -> None:
        """From here on, and for what has come already."""
        self._on_persisted, self._on_replicated = on_persisted, on_replicated
        early, self._early = self._early, []
        for message in early:
            self._take(message)

    def look(self) -> None:
        """Take what has come; returns at once."""
        while self._channel.ready():
            self._take(self._channel.receive())

    def wait(self) -> None:
        """For one more message. Raises EOFError where the agent is gone."""
        self._take(self._channel.receive())

    def ask_for_slots(self, slot_bytes: int | None, count: int) -> None:
        """The agent makes them while the rank goes on; `slots` takes them. None: those that are there."""
        self._channel.send({"kind": "slots", "slot_bytes": slot_bytes, "count": count})

    def slots(self) -> tuple[list[Slot], list[int], int | None]:
        """(slots that were asked for, indices that are still on their way to storage, the newest step of which a peer
        has a copy).

        Raises CheckpointError where their memory can't be had.
        """
        while self._slots is None:
            self.wait()
        (message, descriptors), self._slots = self._slots, None
        if message["problem"] is not None:
            raise CheckpointError(message["problem"])
        return [Slot(descriptor) for descriptor in descriptors], message["held"], message["copied_step"]

    def shares(self) -> tuple[Message, list[int]]:
        """(where another world's snapshots are, descriptors of those in this agent's memory)."""
        self._channel.send({"kind": "shares"})
        while self._shares is None:
            self.wait()
        return self._shares

    def _take(self, message: Message) -> None:
        match message["kind"]:
            case "shares":
                self._shares = message, self._channel.receive_descriptors(message)
            case "drain" | "pause":
                self.asked = max(self.asked, Asked[message["kind"]])
            case "slots":
                self._slots = message, self._channel.receive_descriptors(message)
            case "persisted" | "replicated" if self._on_persisted is None or self._on_replicated is None:
                self._early.append(message)
            case "persisted":
                self._on_persisted(message["slot"], message["step"], message["is_disk"])
            case "replicated":
                self._on_replicated(message["slot"], message["step"])
