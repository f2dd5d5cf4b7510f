"""The agent's side of snapshots: owns the slots, writes them to storage, hands them to the next attempt's ranks."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.checkpoint.layout import Extent, step_folder
from orchestrator.checkpoint.payload import write_payload
from orchestrator.checkpoint.slots import Header, PlacedExtent, Slot, SlotState, create_slot
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointError

WRITERS = 2


@dataclass(slots=True)
class _RankSlots:
    descriptors: list[int]
    slot_bytes: int
    held: set[int] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True, slots=True)
class PersistJob:
    """One slot on its way to storage."""

    rank: int
    world_size: int
    attempt: int
    slot: int
    step: int
    url: str
    """The checkpoint store's."""


class SlotKeeper:
    """Slots stay unmapped here: they are not the agent's resident memory. Any thread may call."""

    def __init__(self) -> None:
        self._ranks: dict[int, _RankSlots] = {}
        self._lock = threading.Lock()
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="persist")

    def slots_for(self, rank: int, slot_bytes: int | None, count: int) -> tuple[list[int], list[int]]:
        """(descriptors, indices still held) of a rank's slots; made anew where they don't have this size.

        `slot_bytes=None` takes those that are there, maybe none. Raises CheckpointError where memory can't be had.
        """
        with self._lock:
            present = self._ranks.get(rank)
            if slot_bytes is None:
                return (present.descriptors, sorted(present.held)) if present is not None else ([], [])
            if present is not None and (present.slot_bytes, len(present.descriptors)) == (slot_bytes, count):
                return present.descriptors, sorted(present.held)
            if present is not None:
                _close(present)
            made = _RankSlots([], slot_bytes)
            self._ranks[rank] = made
            made.descriptors += [create_slot(f"rank-{rank}-slot-{i}", slot_bytes) for i in range(count)]
            return made.descriptors, []

    def sealed_steps(self) -> dict[int, list[int]]:
        """rank -> steps of its sealed slots. Ask when no rank is alive."""
        with self._lock:
            return {
                rank: [
                    header.step
                    for descriptor in slots.descriptors
                    if (header := _header(descriptor)) is not None and header.state is SlotState.sealed
                ]
                for rank, slots in self._ranks.items()
            }

    def keep_only(self, step: int | None) -> None:
        """Before an attempt that starts from `step`: no other snapshot is part of the run any more.

        What is on its way to storage stays as it is until it is there.
        """
        with self._lock:
            for slots in self._ranks.values():
                for index, descriptor in enumerate(slots.descriptors):
                    if index not in slots.held:
                        _discard_unless(descriptor, step)

    def persist(self, job: PersistJob, on_done: Callable[[dict[str, Any]], None]) -> None:
        """Write a sealed slot as the rank's payload, in the background; `on_done` gets the event to tell."""
        with self._lock:
            slots = self._ranks[job.rank]
            slots.held.add(job.slot)
            descriptor = os.dup(slots.descriptors[job.slot])

        def work() -> None:
            started = time.monotonic()
            try:
                event = {**_write(job, descriptor), "seconds": time.monotonic() - started}
            except (CheckpointError, OSError) as error:
                event = {"kind": "save_failed", "step": job.step, "message": str(error)}
            finally:
                os.close(descriptor)
                with self._lock:
                    slots.held.discard(job.slot)
            on_done(event)

        self._writers.submit(work)

    def close(self) -> None:
        self._writers.shutdown(wait=True)
        with self._lock:
            for slots in self._ranks.values():
                _close(slots)
            self._ranks.clear()


def owned_extent(placed: PlacedExtent, rank: int, world_size: int) -> PlacedExtent | None:
    """The part that `rank` saves of an extent which every rank holds whole (stage 0); None where that is nothing."""
    extent = placed.extent
    start, stop = (extent.count * part // world_size for part in (rank, rank + 1))
    if start == stop:
        return None
    cut = Extent(extent.name, extent.kind, extent.shape, extent.start + start, stop - start)
    return PlacedExtent(cut, placed.first + start)


def _write(job: PersistJob, descriptor: int) -> dict[str, Any]:
    slot = Slot(descriptor)
    header = slot.header()
    if (header.state, header.step) != (SlotState.sealed, job.step):
        raise CheckpointError(f"slot {job.slot} of rank {job.rank} does not hold step {job.step}")
    small, data = slot.small(), slot.data()
    placed = list(slot.extents())
    if small["is_replicated"]:
        cut = (owned_extent(extent, job.rank, job.world_size) for extent in placed)
        placed = [extent for extent in cut if extent is not None]
    tensors = [(p.extent, data[p.first : p.first + p.extent.count]) for p in placed]
    rng = np.frombuffer(bytes.fromhex(small["rng_torch"]), dtype=np.uint8)
    payload = write_payload(
        Store(job.url),
        step_folder(job.step),
        job.rank,
        job.attempt,
        tensors,
        {f"rng/torch/rank_{job.rank:05d}": rng},
    )
    return {"kind": "saved", "step": job.step, "payload": payload.to_dict(), "counters": small["counters"]}


def _header(descriptor: int) -> Header | None:
    """None where the slot was never formatted."""
    try:
        return Slot(descriptor).header()
    except CheckpointError:
        return None


def _discard_unless(descriptor: int, step: int | None) -> None:
    header = _header(descriptor)
    if header is not None and header.step != step:
        Slot(descriptor).discard()


def _close(slots: _RankSlots) -> None:
    for descriptor in slots.descriptors:
        os.close(descriptor)
