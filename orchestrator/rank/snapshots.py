"""A rank's snapshots as its loop sees them: restore from memory, take one at a step boundary, see it to storage."""

from collections.abc import Callable
from functools import partial

import torch

from model.engine import Engine
from orchestrator.agent.channel import Channel, Message
from orchestrator.checkpoint.slots import (
    Share,
    Slot,
    SlotReader,
    SlotShape,
    SnapshotDamagedError,
    sealed_step,
)
from orchestrator.control.snapshotmemory import SnapshotCounts
from orchestrator.errors import CheckpointError
from orchestrator.rank.inbox import Inbox
from orchestrator.rank.shares import SharesReader, SlotElsewhere, SlotHere, Source, likely_first
from orchestrator.rank.snapshotter import NO_STEP, Snapshotter, slot_shape
from orchestrator.rank.staging import Staging
from orchestrator.spec import WorkerSpec


class Snapshots:
    def __init__(self, spec: WorkerSpec, engine: Engine, channel: Channel, inbox: Inbox) -> None:
        self._spec = spec
        self._engine = engine
        self._channel = channel
        self._inbox = inbox
        self._staging = Staging(torch.device(engine.settings.device), spec.threads)
        self._snapshotter: Snapshotter | None = None
        self._shape: SlotShape | None = None
        self._is_settled = False
        """This world has snapshots of its own: those of the former one may go."""
        self._num_due = self._num_taken = self._num_copied = 0
        self.restored_report: Message | None = None
        """What this rank had reported of the step that it was restored to."""
        self.recent_losses: list[float] = []
        """What it had kept of the losses before."""

    @property
    def counts(self) -> SnapshotCounts:
        return SnapshotCounts(self._num_due, self._num_taken, self._num_copied if self._spec.has_peer else None)

    def restore(self) -> None:
        """From this rank's own slot of `resume.step`, or from those of another world. Raises SnapshotDamagedError."""
        if self._is_from_other_world:
            self._restore_from_shares()
        else:
            self._restore_from_slot()

    @property
    def _is_from_other_world(self) -> bool:
        resume = self._spec.resume
        return resume.is_in_memory and resume.world_size not in (None, self._spec.world_size)

    def _restore_from_shares(self) -> None:
        """The ranges that this rank needs, of the snapshots that the ranks of another world have left."""
        spec, former = self._spec, self._spec.resume.world_size
        assert former is not None
        message, descriptors = self._inbox.shares()
        here = dict(zip(message["here"], map(SlotHere, descriptors), strict=True))
        elsewhere = {
            rank: SlotElsewhere((host, port), message["secret"], Share(former, rank), spec.resume.step)
            for rank, (host, port) in message["elsewhere"]
        }
        sources: list[Source] = []
        for known in (here, elsewhere):  # this node's first: they cost no network
            sources += [known[rank] for rank in likely_first(known, spec.world_size, spec.rank, former)]
        with SharesReader(sources) as reader:
            small = reader.small()
            self._engine.restore(reader.read, spec.resume.step, small["counters"])
        self.recent_losses = small.get("recent_losses", [])

    def _restore_from_slot(self) -> None:
        step = self._spec.resume.step
        self._inbox.ask_for_slots(None, self._spec.num_slots)
        slots, _, _ = self._inbox.slots()
        for slot in slots:
            if sealed_step(slot.descriptor) == step:
                self._restore_from(slot, step)
                return
        raise SnapshotDamagedError(f"no slot of this rank holds step {step}")

    def _restore_from(self, slot: Slot, step: int) -> None:
        self._restore_state(slot, step)
        small = slot.small()
        self.restored_report = small["report"] or None
        self.recent_losses = small.get("recent_losses", [])

    def _restore_state(self, slot: Slot, step: int) -> None:
        engine = self._engine
        try:
            if slot.has_shape(slot_shape(engine.planned_parts())):
                engine.restore_parts(
                    lambda parts: self._staging.load(slot, parts), step, lambda: slot.small()["counters"]
                )
            elif slot.is_sound():
                engine.restore(SlotReader(slot).read, step, slot.small()["counters"])
            else:
                raise CheckpointError("it does not match its checksum")
        except CheckpointError as error:
            raise SnapshotDamagedError(f"the snapshot of step {step} can't be restored: {error}") from error

    def restore_again(self, step: int) -> None:
        """Back to the snapshot of `step`, which every rank has sealed: as at the start of an attempt."""
        snapshotter = self._snapshotter
        slot = None if snapshotter is None else snapshotter.slot_of(step)
        if slot is None:
            raise SnapshotDamagedError(f"the snapshot of step {step} is gone")
        self._restore_state(slot, step)

    def prepare(self) -> None:
        """Before the first step: the agent makes the slots' pages meanwhile, so that the first snapshot costs no more
        than the hundredth."""
        self._shape = slot_shape(self._engine.planned_parts())
        self._inbox.ask_for_slots(self._shape.slot_bytes, self._spec.num_slots)

    def votes(self) -> tuple[int, int, int, int]:
        """What the ranks must know of each other, as numbers whose minimum counts: the newest step that this rank has
        sealed; the newest of which a peer has a copy; whether no copy, and nothing for the disk, is on its way."""
        snapshotter = self._snapshotter
        if snapshotter is None:
            return NO_STEP, NO_STEP, True, True
        return (
            snapshotter.sealed_step,
            snapshotter.replicated_step,
            not snapshotter.is_replicating,
            not snapshotter.is_going_to_disk,
        )

    def is_due_on_disk(self, step: int) -> bool:
        """Whether the checkpoint of `step` goes to the nodes' own disks: all ranks say the same."""
        is_due = self._spec.disk_folder is not None and step % self._spec.checkpoint.local_every_steps == 0
        return is_due and (self._snapshotter is None or self._snapshotter.may_go_to_disk)

    def agreed(
        self, common_step: int, common_replicated_step: int, are_copies_there: int, are_disks_idle: int
    ) -> None:
        """The minimum of every rank's `votes`: older snapshots may go, and the next may be copied and written."""
        snapshotter = self._snapshotter
        if snapshotter is not None:
            snapshotter.common_step = max(snapshotter.common_step, common_step)
            newest_copied = max(snapshotter.common_replicated_step, self._spec.resume.step)
            self._num_copied += common_replicated_step > newest_copied
            snapshotter.common_replicated_step = max(snapshotter.common_replicated_step, common_replicated_step)
            snapshotter.may_replicate = bool(are_copies_there)
            snapshotter.may_go_to_disk = bool(are_disks_idle)
            safe_step = common_replicated_step if self._spec.has_peer else common_step
            if self._is_from_other_world and not self._is_settled and safe_step > self._spec.resume.step:
                self._is_settled = True
                self._channel.send({"kind": "settled"})

    def wait(self) -> float:
        """Before an update: until the snapshot under way is whole; returns the seconds that took."""
        return self._snapshotter.wait() if self._snapshotter else 0.0

    def take(self, step: int, facts: Callable[[], Message], *, is_persisted: bool, is_last: bool) -> None:
        """Begin the snapshot of `step`; `facts`, called before the next update in another thread, gives what the loop
        wants back with it.

        Where `is_last`, return only once it is in storage or was given up.

        Where no slot is free the snapshot is left out, and a checkpoint that is due is told as failed; the last one
        waits instead.
        """
        snapshotter = self._snapshotter or self._open()
        every = self._spec.snapshot.replicate_every_steps if self._spec.has_peer else 0
        is_replicated = every > 0 and step % every == 0 and snapshotter.may_replicate
        # More on their way would leave no slot for the snapshots to come: the store may be slow, training not.
        has_backlog = is_persisted and not is_last and snapshotter.num_persisting >= self._max_backlog
        how = {
            "is_persisted": is_persisted and not has_backlog,
            "is_replicated": is_replicated,
            "is_on_disk": self.is_due_on_disk(step) and not is_last,
            "is_last": is_last,
        }
        # It goes to storage only, since every stream is seeded by formula at each step; it must be read now.
        generator = torch.get_rng_state() if how["is_persisted"] or how["is_on_disk"] else None
        parts, small = self._engine.state_parts, partial(self._small, facts, generator)
        is_taken = snapshotter.take(step, parts, small, **how)
        while not is_taken and is_last:
            self._inbox.wait()
            is_taken = snapshotter.take(step, parts, small, **how)
        self._num_due += 1
        self._num_taken += is_taken
        if has_backlog or (not is_taken and is_persisted):
            message = (
                "storage has not yet taken the checkpoint before it; raise checkpoint.every_steps or snapshot.slots"
            )
            self._channel.send({"kind": "save_failed", "step": step, "message": message, "is_skipped": True})
        if is_last:
            snapshotter.wait()
            while snapshotter.num_persisting:
                self._inbox.wait()

    def secure(self, step: int, facts: Callable[[], Message]) -> None:
        """Return once `step` is whole in memory, and in a peer's where there are peers, whether a snapshot or a copy
        of it was due or not: this node may be one that is left now."""
        snapshotter = self._snapshotter or self._open()
        snapshotter.wait()
        if snapshotter.sealed_step != step:
            parts, small = self._engine.state_parts, partial(self._small, facts)
            how = {"is_persisted": False, "is_replicated": False, "is_on_disk": False}
            while not snapshotter.take(step, parts, small, **how):
                self._inbox.wait()
            snapshotter.wait()
        if self._spec.has_peer:
            self._wait_for_copy(snapshotter)
            if snapshotter.replicated_step != step:
                snapshotter.replicate(step)
                self._wait_for_copy(snapshotter)

    def _wait_for_copy(self, snapshotter: Snapshotter) -> None:
        while snapshotter.is_replicating:
            self._inbox.wait()

    @property
    def _max_backlog(self) -> int:
        """Checkpoints that may be on their way to storage at a time."""
        return max(1, self._spec.num_slots - self._spec.num_busy_slots)

    def _open(self) -> Snapshotter:
        spec, shape = self._spec, self._shape
        if shape is None:
            raise RuntimeError("prepare before the first snapshot")
        slots, held, copied_step = self._inbox.slots()
        for index, slot in enumerate(slots):
            if index not in held and not slot.has_shape(shape):
                slot.format(shape)
        snapshotter = Snapshotter(
            self._channel,
            slots,
            held,
            self._staging,
            attempt=spec.attempt,
            world_size=spec.world_size,
            url=spec.checkpoint_url,
            disk_folder=spec.disk_folder,
            config=spec.checkpoint,
        )
        if spec.resume.is_in_memory and not self._is_from_other_world:
            snapshotter.restored_from(spec.resume.step, copied_step)
        self._inbox.listen(snapshotter.persisted, snapshotter.replicated)
        self._snapshotter = snapshotter
        return snapshotter

    def _small(self, facts: Callable[[], Message], generator: torch.Tensor | None = None) -> Message:
        return {
            "counters": self._engine.counters(),
            "rng_torch": None if generator is None else generator.numpy().tobytes().hex(),
            "is_replicated": self._engine.is_replicated,
            "skipped_windows": list(self._spec.resume.skipped_windows),
            "branch": self._spec.resume.branch,
            **facts(),
        }

    def close(self) -> None:
        if self._snapshotter is not None:
            self._snapshotter.close()
        self._staging.close()
