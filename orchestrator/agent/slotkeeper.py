"""The agent's side of snapshots: owns the slots, writes them to storage, hands them to the next attempt's ranks."""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.agent.sending import Peer, Sending
from orchestrator.checkpoint.key import key_to_write
from orchestrator.checkpoint.layout import Extent, step_folder
from orchestrator.checkpoint.payload import write_payload
from orchestrator.checkpoint.retry import Patience, retried
from orchestrator.checkpoint.slots import (
    PlacedExtent,
    Share,
    Slot,
    SlotState,
    SnapshotDamagedError,
    create_slot,
    is_kept,
    sealed_step,
)
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointError, StoreError

WRITERS = 2


@dataclass(slots=True)
class _RankSlots:
    descriptors: list[int]
    slot_bytes: int
    held: Counter[int] = field(default_factory=Counter)
    """slot -> transfers that still read it."""
    doomed: set[int] = field(default_factory=set)
    """Held slots whose step is not the run's any more: emptied once they are released."""
    copied_step: int | None = None
    """The newest of which the peer has a copy."""

    def held_slots(self) -> list[int]:
        """Once for each transfer that still reads it."""
        return sorted(self.held.elements())

    def empty(self, slot: int) -> None:
        """At once, or as soon as nobody reads it any more."""
        if self.held[slot]:
            self.doomed.add(slot)
        else:
            _discard(self.descriptors[slot])

    def release(self, slot: int) -> None:
        self.held[slot] -= 1
        if self.held[slot] == 0 and slot in self.doomed:
            self.doomed.discard(slot)
            _discard(self.descriptors[slot])


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
    is_disk: bool
    """To this node's own disk, not to checkpoint.url."""
    is_last: bool
    """The run's last checkpoint, for which it waits."""
    is_encrypted: bool
    key_file: str | None
    """Where this node's key is; None: in the environment."""
    patience: Patience

    @property
    def share(self) -> Share:
        return Share(self.world_size, self.rank)


class SlotKeeper:
    """Slots stay unmapped here: they are not the agent's resident memory. Any thread may call."""

    def __init__(self) -> None:
        self._shares: dict[Share, _RankSlots] = {}
        self._lock = threading.Lock()
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="persist")
        self._disk_writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="to-disk")
        """Of their own: a store that does not answer must not hold up the disk."""
        self._sending = Sending()
        self._stores: dict[str, Store] = {}
        """Kept, because a store knows what was mounted when it was first used."""
        self._is_closing = threading.Event()
        self._is_hurried = threading.Event()
        """A last checkpoint waits: the ones before it are not tried again any more."""

    def slots_for(self, share: Share, slot_bytes: int | None, count: int) -> tuple[list[int], list[int]]:
        """(descriptors, indices still held) of a rank's slots; made anew where they don't have this size.

        `slot_bytes=None` takes those that are there, maybe none. Raises CheckpointError where memory can't be had.
        """
        with self._lock:
            present = self._shares.get(share)
            if slot_bytes is None:
                return (present.descriptors, present.held_slots()) if present is not None else ([], [])
            if present is not None and present.slot_bytes != slot_bytes:
                _close(present)
                present = None
            slots = self._shares[share] = present or _RankSlots([], slot_bytes)
            for index in range(len(slots.descriptors), count):  # one by one: those that could be had are kept
                slots.descriptors.append(create_slot(f"rank-{share.rank}-slot-{index}", slot_bytes))
            return slots.descriptors, slots.held_slots()

    def sealed_steps(self) -> dict[Share, list[int]]:
        """Steps of the sealed slots. Ask when no rank is alive."""
        with self._lock:
            return {share: [step for step, _ in _sealed(slots)] for share, slots in self._shares.items()}

    def find(self, share: Share, step: int) -> int | None:
        """Descriptor, for the caller to close, of the slot sealed at `step`; None where there is none."""
        with self._lock:
            slots = self._shares.get(share)
            found = [descriptor for sealed, descriptor in _sealed(slots) if sealed == step] if slots else []
            return os.dup(found[0]) if found else None

    def keep_only(self, step: int | None, world_size: int, *, is_resized: bool = False) -> None:
        """Before an attempt of so many ranks that starts from `step`: no later snapshot is part of the run any more.

        Earlier ones stay until their slots are needed: `step` may prove damaged, or a node be lost before the next is
        copied. Where the attempt is of another world than the snapshots (`is_resized`) they go, too. What is on its
        way to storage stays as it is until it is there. Of other worlds nothing is left but `step`, until
        `forget_other_worlds`.
        """
        self._sending.end_attempt()
        self._is_hurried.clear()
        with self._lock:
            for share, slots in list(self._shares.items()):
                if share.world_size != world_size:
                    self._shares[share] = trimmed = _trimmed(slots, step)
                    if not trimmed.descriptors:
                        del self._shares[share]
                    continue
                for slot, descriptor in enumerate(slots.descriptors):
                    if not is_kept(sealed_step(descriptor), step, is_resized=is_resized):
                        slots.empty(slot)
                if not is_kept(slots.copied_step, step, is_resized=is_resized):
                    slots.copied_step = None

    def reject(self, share: Share, step: int) -> bool:
        """The rank has found its snapshot of `step` damaged: it is not chosen again. Whether there was one."""
        with self._lock:
            slots = self._shares.get(share)
            found = [slot for slot, d in enumerate(slots.descriptors) if sealed_step(d) == step] if slots else []
            for slot in found:
                slots.empty(slot)
            return bool(found)

    def copied_step(self, share: Share) -> int | None:
        """The newest step of which the peer has a copy, as far as this agent knows."""
        with self._lock:
            slots = self._shares.get(share)
            return slots.copied_step if slots else None

    def forget_copies(self) -> None:
        """There is another peer from now on."""
        with self._lock:
            for slots in self._shares.values():
                slots.copied_step = None

    def forget_other_worlds(self, world_size: int) -> None:
        """A world of `world_size` has snapshots of its own by now: free those of others."""
        with self._lock:
            for share in [share for share in self._shares if share.world_size != world_size]:
                _close(self._shares.pop(share))

    def adopt(self, share: Share, descriptor: int) -> None:
        """A lost node's slot, fetched from its peer, is the first of this rank's from now on."""
        with self._lock:
            present = self._shares.pop(share, None)
            if present is not None:
                _close(present)
            self._shares[share] = _RankSlots([descriptor], os.fstat(descriptor).st_size)

    def persist(
        self,
        job: PersistJob,
        on_done: Callable[[dict[str, Any]], None],
        on_delay: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> None:
        """Write a sealed slot as the rank's payload, in the background; `on_done` gets the event to tell.

        Where the store fails it is tried again as long as `job.patience` says; `on_delay` is told of the first time.
        """
        slots, descriptor = self._hold(job.share, job.slot)
        pause = self._is_closing.wait if job.is_last else self._is_hurried.wait
        submitted_s = time.monotonic()
        is_told = False
        if job.is_last:
            self._is_hurried.set()

        def tell_delay(error: StoreError) -> None:
            nonlocal is_told
            if not is_told:
                is_told = True
                on_delay(failure_event("save_delayed", job.step, error) | {"is_last": job.is_last})

        def work() -> None:
            started = time.monotonic()
            try:
                written = retried(
                    lambda: _write(job, self._store(job), descriptor),
                    job.patience,
                    pause=pause,
                    on_wait=tell_delay,
                    started_s=submitted_s,
                )
                event = {**written, "seconds": time.monotonic() - started, "is_last": job.is_last}
            except Exception as error:  # whatever it is: a rank may wait for the end of this
                event = failure_event("save_failed", job.step, error)
            finally:
                self._release(slots, job.slot, descriptor)
            on_done(event | {"is_disk": job.is_disk})

        (self._disk_writers if job.is_disk else self._writers).submit(work)

    def replicate(self, share: Share, slot: int, peer: Peer, on_done: Callable[[bool], None]) -> None:
        """Copy a sealed slot into a peer's memory, in the background, trying again until it is there or the attempt
        has ended; `on_done` gets which."""
        slots, descriptor = self._hold(share, slot)
        step = sealed_step(descriptor)

        def end(is_copied: bool) -> None:
            if is_copied:
                slots.copied_step = step
            self._release(slots, slot, descriptor)
            on_done(is_copied)

        self._sending.send(peer, descriptor, share, end)

    def _hold(self, share: Share, slot: int) -> tuple[_RankSlots, int]:
        with self._lock:
            slots = self._shares[share]
            slots.held[slot] += 1
            return slots, os.dup(slots.descriptors[slot])

    def _release(self, slots: _RankSlots, slot: int, descriptor: int) -> None:
        os.close(descriptor)
        with self._lock:
            slots.release(slot)

    def _store(self, job: PersistJob) -> Store:
        with self._lock:
            if job.url not in self._stores:
                self._stores[job.url] = Store(job.url, is_private=job.is_encrypted)
            return self._stores[job.url]

    def num_bytes(self) -> int:
        with self._lock:
            held = [descriptor for slots in self._shares.values() for descriptor in slots.descriptors]
            return sum(os.fstat(descriptor).st_size for descriptor in held)

    def close(self) -> None:
        """What is on its way to storage arrives first, but a store that fails is not waited for."""
        self._is_closing.set()
        self._is_hurried.set()
        self._sending.close()
        self._writers.shutdown(wait=True)
        self._disk_writers.shutdown(wait=True)
        with self._lock:
            for slots in self._shares.values():
                _close(slots)
            self._shares.clear()


def owned_extent(placed: PlacedExtent, rank: int, world_size: int) -> PlacedExtent | None:
    """The part that `rank` saves of an extent which every rank holds whole (stage 0); None where that is nothing."""
    extent = placed.extent
    start, stop = (extent.count * part // world_size for part in (rank, rank + 1))
    if start == stop:
        return None
    cut = Extent(extent.name, extent.kind, extent.shape, extent.start + start, stop - start)
    return PlacedExtent(cut, placed.first + start)


def failure_event(kind: str, step: int, error: Exception) -> dict[str, Any]:
    """`save_delayed` (it is tried again) or `save_failed`, with the store's fault where it is one."""
    fault = error.fault.value if isinstance(error, StoreError) else None
    message = str(error) if isinstance(error, CheckpointError | OSError) else f"{type(error).__name__}: {error}"
    return {"kind": kind, "step": step, "message": message, "fault": fault}


def _write(job: PersistJob, store: Store, descriptor: int) -> dict[str, Any]:
    """Raises CheckpointError; SnapshotDamagedError, and nothing is left of the file, where the slot is not sound."""
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
        store,
        step_folder(job.step),
        job.rank,
        job.attempt,
        tensors,
        {f"rng/torch/rank_{job.rank:05d}": rng},
        key_to_write(job.key_file) if job.is_encrypted else None,
    )
    if slot.header() != header or not slot.is_sound():  # afterwards: so that all of the file is what was sealed
        with contextlib.suppress(StoreError):
            store.remove(f"{step_folder(job.step)}/{payload.file}")
        raise SnapshotDamagedError(
            f"the snapshot of step {job.step} of rank {job.rank} does not match its checksum: it is not saved"
        )
    facts = {"counters": small["counters"], "recent_losses": small.get("recent_losses", [])}
    return {"kind": "saved", "step": job.step, "payload": payload.to_dict(), **facts}


def _sealed(slots: _RankSlots) -> list[tuple[int, int]]:
    """(step, descriptor) of every sealed slot that is the run's."""
    return [
        (step, descriptor)
        for slot, descriptor in enumerate(slots.descriptors)
        if slot not in slots.doomed and (step := sealed_step(descriptor)) is not None
    ]


def _trimmed(slots: _RankSlots, step: int | None) -> _RankSlots:
    """What is left of slots that no rank will fill again; who reads one of the others has its own descriptor."""
    kept = [descriptor for sealed, descriptor in _sealed(slots) if sealed == step][:1]
    for descriptor in slots.descriptors:
        if descriptor not in kept:
            os.close(descriptor)
    slots.doomed.clear()
    return _RankSlots(kept, slots.slot_bytes)


def _discard(descriptor: int) -> None:
    with contextlib.suppress(CheckpointError):  # never formatted
        Slot(descriptor).discard()


def _close(slots: _RankSlots) -> None:
    for descriptor in slots.descriptors:
        os.close(descriptor)
    slots.doomed.clear()
