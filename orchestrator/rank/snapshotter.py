"""A rank's side of snapshots: fills slots of the agent's memory in the background, between two updates.

From the end of one update to the next the masters and moments don't change, so a thread copies them while the next
step's forward and backward passes run; the update waits for the copy. Only the small state is gathered by the
training thread, which makes no system call but to wake the other. (The observation is DataStates-LLM's, arXiv
2406.10707.)

A slot may be filled again once a newer step is sealed on every rank; the ranks agree on that step in the loop's vote.
A slot whose content is on its way to storage is held until the agent releases it.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from model.partition import StatePart
from orchestrator.agent.channel import Channel
from orchestrator.checkpoint.layout import Extent
from orchestrator.checkpoint.slots import PlacedExtent, Slot, SlotShape, SlotState
from orchestrator.config import CheckpointConfig
from orchestrator.rank.staging import Staging

NO_STEP = -1


def slot_shape(parts: Sequence[StatePart]) -> SlotShape:
    """One slot's layout: the parts one after the other, as they lie in the engine."""
    extents: list[PlacedExtent] = []
    first = 0
    for part in parts:
        extents += [
            PlacedExtent(Extent(f.name, part.kind, f.shape, f.start, f.count), first + f.flat_start)
            for f in part.fragments
        ]
        first += part.values.numel()
    return SlotShape(tuple(extents), first)


@dataclass(slots=True)
class _Copy:
    slot: int
    step: int
    parts: Callable[[], Sequence[StatePart]]
    small: Callable[[], dict[str, Any]]
    is_persisted: bool
    is_replicated: bool
    is_on_disk: bool
    is_last: bool


class Snapshotter:
    def __init__(
        self,
        channel: Channel,
        slots: Sequence[Slot],
        held: Sequence[int],
        staging: Staging,
        *,
        attempt: int,
        world_size: int,
        url: str,
        disk_folder: str | None,
        config: CheckpointConfig,
    ) -> None:
        """`slots` are formatted; the agent still writes those in `held` to storage, at `url` or to its own disk."""
        self.common_step = NO_STEP
        """Newest step that is sealed on every rank."""
        self.sealed_step = NO_STEP
        """Newest step that is sealed on this rank."""
        self.common_replicated_step = NO_STEP
        """Newest step of which every rank has a copy in a peer's memory: losing a node goes back to it."""
        self.replicated_step = NO_STEP
        """Newest step of which this rank has a copy in its peer's memory."""
        self.may_replicate = True
        """Whether every rank's last copy has arrived: all ranks say the same, so they copy the same steps."""
        self.may_go_to_disk = True
        """Whether no rank's disk is still busy: all ranks say the same, so they write the same steps."""
        self._channel = channel
        self._slots = list(slots)
        headers = [slot.header() for slot in self._slots]
        self._sealed_steps = [header.step if header.state is SlotState.sealed else NO_STEP for header in headers]
        """Of each slot, NO_STEP where it holds none; nobody else changes them during an attempt."""
        self._staging = staging
        self._held: Counter[int] = Counter(held)
        self._replicating_step = NO_STEP
        self._writing_step = NO_STEP
        self._written_step = NO_STEP
        """Newest steps whose way to this node's disk has begun, and has ended: there, or given up."""
        self._attempt = attempt
        self._disk_folder = disk_folder
        self._config = config
        self._url = url
        self._persisting = {
            "kind": "persist",
            "world_size": world_size,
            "is_encrypted": config.encrypt,
            "key_file": config.key_file,
        }
        self._persisting_slots: set[int] = set()
        self._copy: _Copy | None = None
        self._error: Exception | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="snapshots", daemon=True)
        self._thread.start()

    def restored_from(self, step: int, copied_step: int | None = None) -> None:
        """This rank's state came from the slot of `step`, which every rank has; of `copied_step`, and none later, the
        peer has a copy: until there is a newer one, losing a node goes back to it."""
        self.common_step = self.sealed_step = step
        if copied_step is not None and copied_step <= step:
            self.replicated_step = self._replicating_step = copied_step

    def take(
        self,
        step: int,
        parts: Callable[[], Sequence[StatePart]],
        small: Callable[[], dict[str, Any]],
        *,
        is_persisted: bool,
        is_replicated: bool,
        is_on_disk: bool = False,
        is_last: bool = False,
    ) -> bool:
        """Begin the snapshot of `step`, at once; False where no slot is free. `wait` before the next update: until
        then what `parts` and `small` give, in another thread, must not change."""
        slot = self._free_slot()
        if slot is None:
            return False
        self._sealed_steps[slot] = NO_STEP
        with self._changed:
            self._held[slot] += is_persisted + is_replicated + is_on_disk
            if is_persisted:
                self._persisting_slots.add(slot)
            if is_replicated:
                self._replicating_step = step
            if is_on_disk:
                self._writing_step = step
            self._copy = _Copy(slot, step, parts, small, is_persisted, is_replicated, is_on_disk, is_last)
            self._changed.notify_all()
        return True

    def _free_slot(self) -> int | None:
        # A copy that has arrived may be the newest of all ranks' soon: the others' votes are not heard yet.
        copied = (self.common_replicated_step, self.replicated_step)
        for index, step in enumerate(self._sealed_steps):
            is_needed = step != NO_STEP and (step >= self.common_step or step in copied)
            if not is_needed and not self._held[index]:
                return index
        return None

    def slot_of(self, step: int) -> Slot | None:
        """The slot that holds `step` whole."""
        index = self._index_of(step)
        return None if index is None else self._slots[index]

    def _index_of(self, step: int) -> int | None:
        return self._sealed_steps.index(step) if step in self._sealed_steps else None

    def replicate(self, step: int) -> None:
        """Begin to copy the slot of `step`, which is sealed, to the peer; the copy before it must have arrived."""
        index = self._index_of(step)
        if index is None:
            raise RuntimeError(f"no slot holds step {step}")
        self._held[index] += 1
        self._replicating_step = step
        self._channel.send({"kind": "replicate", "step": step, "slot": index})

    @property
    def is_replicating(self) -> bool:
        """Whether this rank's last copy is still on its way."""
        return self.replicated_step != self._replicating_step

    @property
    def is_going_to_disk(self) -> bool:
        return self._written_step != self._writing_step

    def wait(self) -> float:
        """Until the snapshot under way is sealed; returns the seconds that took. Raises what stopped the copy."""
        started = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._copy is None or self._error is not None)
            if self._error is not None:
                raise self._error
        return time.perf_counter() - started

    def persisted(self, slot: int, step: int | None, is_disk: bool) -> None:
        """The agent has written the slot, which holds `step`, or has given up; None: it was an earlier attempt's."""
        self._release(slot)
        if not is_disk:
            self._persisting_slots.discard(slot)
        elif step is not None:
            self._written_step = step

    def replicated(self, slot: int, step: int | None) -> None:
        """A peer has a copy of the slot, which holds `step`; None where that was an earlier attempt's, or failed."""
        self._release(slot)
        if step is not None:
            self.replicated_step = step

    def _release(self, slot: int) -> None:
        """An earlier attempt's transfer may end before we have heard that it holds the slot."""
        self._held[slot] = max(0, self._held[slot] - 1)

    @property
    def num_persisting(self) -> int:
        return len(self._persisting_slots)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._copy is not None or self._is_closed)
                copy = self._copy
                if copy is None:
                    return
            try:
                self._fill(copy)
            except Exception as error:
                self._error = error
            with self._changed:
                self._copy = None
                self._changed.notify_all()

    def _fill(self, copy: _Copy) -> None:
        slot = self._slots[copy.slot]
        slot.begin(copy.step, self._attempt, copy.small())
        self._staging.save(slot, copy.parts())
        self._sealed_steps[copy.slot] = copy.step
        self.sealed_step = copy.step
        with contextlib.suppress(OSError):  # the agent is gone, and this rank will be soon
            if copy.is_replicated:
                self._channel.send({"kind": "replicate", "step": copy.step, "slot": copy.slot})
            what = {**self._persisting, "step": copy.step, "slot": copy.slot}
            if copy.is_on_disk:  # one try: the next interval is soon
                how = {"url": self._disk_folder, "is_disk": True, "is_last": False, "timeout_s": 0.0}
                self._channel.send({**what, **how})
            if copy.is_persisted:
                timeout_s = self._config.final_timeout_s if copy.is_last else self._config.retry_timeout_s
                how = {"url": self._url, "is_disk": False, "is_last": copy.is_last, "timeout_s": timeout_s}
                self._channel.send({**what, **how})
