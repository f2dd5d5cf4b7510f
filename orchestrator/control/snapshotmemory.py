"""What snapshots take of a node's memory, and what to give up where that is too much. Plan half."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from model.sizing import parameter_shapes
from orchestrator.config import RunConfig, SnapshotConfig
from orchestrator.control.specs import COPIES_OF_RANK, has_peers, min_slots, num_slots
from orchestrator.memory import FP32_BYTES, dtype_bytes, gigabytes, held_bytes, num_moments
from orchestrator.observe.units import plural
from orchestrator.spec import Placement, RunPlan

SLOT_HEAD_BYTES = 72 * 1024
"""Header, small state and rounding of a slot."""
LIBRARY_BYTES = 316_000_000
"""Of a rank's process on a CPU before any of its model: Python, torch, DeepSpeed, gloo. Measured: 310 to 335 MB."""
KEPT_COPIES = {0: 0.0, 1: 5.0, 2: 5.5, 3: 6.5}
"""By ZeRO stage, in parameters of compute type: the copies that DeepSpeed and gloo make of them in a step on a CPU,
and what the ranks' malloc keeps of the freed ones (agent.zygotehandle.MALLOC_TUNABLES). Measured on 2 and 4 ranks
with 2.4 to 34 M parameters."""
KEPT_COPIES_ALONE = 3.0
"""The same with one rank, which sends nothing."""
KEPT_OF_ACTIVATIONS = 0.3
"""Their gradients, and what malloc keeps of both."""
COPIES_UNHEARD_OF = 2
"""At a run's end: the last one's arrival, and that of the one before, are told with the steps to come."""
INDEX_BYTES_PER_EXTENT = 96
"""Of a slot's index, where a parameter's name has 40 characters."""


class SnapshotCounts(NamedTuple):
    """Of one attempt."""

    due: int
    taken: int
    copied: int | None
    """Those of which every rank's copy has reached its peer; None where there are no peers."""


@dataclass(frozen=True, slots=True)
class SnapshotMemory:
    """Of the fullest node."""

    slots: int
    """For each rank."""
    copies: int
    """For each rank of the node whose copies it holds."""
    slot_bytes: int
    share_bytes: int
    """What a rank saves of the state: at ZeRO stage 0 a part of what its slot holds."""
    workers: int
    ranks_bytes: int
    """What the node's ranks hold in the same memory."""

    @property
    def snapshot_bytes(self) -> int:
        return (self.slots + self.copies) * self.slot_bytes * self.workers

    @property
    def node_bytes(self) -> int:
        return self.snapshot_bytes + self.ranks_bytes


@dataclass(frozen=True, slots=True)
class FittingSnapshots:
    config: SnapshotConfig
    """As asked for, or with less."""
    memory: SnapshotMemory
    note: str | None
    """What was given up, in one sentence."""
    is_enough: bool
    """Whether that fits."""


def snapshot_memory(config: RunConfig, plan: RunPlan, placement: Placement) -> SnapshotMemory:
    """With Adam 12 bytes for each parameter, shared by all ranks; at ZeRO stage 0 each rank holds it whole."""
    kinds = 1 + num_moments(config.optim)
    state_bytes = plan.parameters * FP32_BYTES * kinds
    share_bytes = state_bytes if plan.zero_stage == 0 else -(-state_bytes // plan.batch.world_size)
    num_nodes, workers = len(placement.bundles), max(bundle.workers for bundle in placement.bundles)
    index_bytes = INDEX_BYTES_PER_EXTENT * kinds * len(parameter_shapes(plan.model))
    rank = plan.memory_by_stage[plan.zero_stage]
    return SnapshotMemory(
        slots=num_slots(config, num_nodes),
        copies=COPIES_OF_RANK if has_peers(config, num_nodes) else 0,
        slot_bytes=share_bytes + SLOT_HEAD_BYTES + index_bytes,
        share_bytes=-(-state_bytes // plan.batch.world_size),
        workers=workers,
        ranks_bytes=workers * (held_bytes(rank, plan.device) if plan.device == "cpu" else rank.host),
    )


def process_bytes(plan: RunPlan, memory: SnapshotMemory) -> int | None:
    """What the kernel counts of a rank's process at its peak, its slots among it; None on accelerators, where what is
    watched is the device's memory."""
    if plan.device != "cpu":
        return None
    stage = plan.memory_by_stage[plan.zero_stage]
    copies = KEPT_COPIES[plan.zero_stage]
    if plan.batch.world_size == 1:
        copies = min(copies, KEPT_COPIES_ALONE)
    kept = copies * plan.parameters * dtype_bytes(plan.precision) + KEPT_OF_ACTIVATIONS * stage.activations
    return LIBRARY_BYTES + held_bytes(stage, plan.device) + int(kept) + memory.slots * memory.slot_bytes


def fitting_snapshots(
    config: RunConfig, plan: RunPlan, placement: Placement, node_memory_bytes: int | None
) -> FittingSnapshots:
    """The snapshots that a node's memory bears: with fewer slots some are left out while others are on their way, so
    they come at longer intervals; without room for that none are copied to peers.
    """
    wanted = snapshot_memory(config, plan, placement)
    if node_memory_bytes is None or wanted.node_bytes <= node_memory_bytes:
        return FittingSnapshots(config.snapshot, wanted, None, is_enough=True)
    num_nodes = len(placement.bundles)
    without_peers = replace(config, snapshot=replace(config.snapshot, replicate_every_steps=0))
    choices = [(config, slots) for slots in range(wanted.slots - 1, min_slots(config, num_nodes) - 1, -1)]
    if wanted.copies:
        choices += [(without_peers, slots) for slots in range(wanted.slots - 1, 1, -1)]
    choices = choices or [(config, wanted.slots)]
    for candidate, slots in choices:
        snapshot = replace(candidate.snapshot, slots=slots)
        memory = snapshot_memory(replace(candidate, snapshot=snapshot), plan, placement)
        is_enough = memory.node_bytes <= node_memory_bytes
        if is_enough:
            break
    found = (
        f"a node has {gigabytes(node_memory_bytes)}, its ranks and {wanted.slots} slots"
        + (f" and {wanted.copies} copies" if wanted.copies else "")
        + f" of {gigabytes(wanted.slot_bytes)} for each need {gigabytes(wanted.node_bytes)}"
    )
    if not is_enough:
        note = (
            f"{found}, and {gigabytes(memory.node_bytes)} with {memory.slots}; use fewer workers on a node "
            "(cluster.workers_per_node), a higher parallel.zero_stage or nodes with more memory"
        )
    elif wanted.copies and not memory.copies:
        note = (
            f"{found}: {memory.slots} slots, and no copies on peers; a lost node costs the steps since a checkpoint"
        )
    else:
        note = f"{found}: with {memory.slots} slots snapshots are left out while storage or a peer is busy"
    return FittingSnapshots(snapshot, memory, note, is_enough)


def has_standbys(config: RunConfig, plan: RunPlan, memory: SnapshotMemory, node_memory_bytes: int | None) -> bool:
    """Whether ranks stand by for the next attempt: as asked for, else where the node bears each rank twice. A GPU has
    no room for a second engine."""
    if config.worker.standby is not None:
        return config.worker.standby
    is_bearable = node_memory_bytes is not None and memory.node_bytes + memory.ranks_bytes <= node_memory_bytes
    return plan.device == "cpu" and is_bearable


def snapshot_words(config: RunConfig, memory: SnapshotMemory) -> str:
    """For the start-up summary: `memory every step, peers every step, storage every 100 steps; 5 slots ...`"""
    snapshot, checkpoint = config.snapshot, config.checkpoint
    tiers = [f"memory {every(snapshot.every_steps)}" if snapshot.every_steps else "memory with each checkpoint"]
    if memory.copies:
        tiers.append(f"peers {every(snapshot.replicate_every_steps)}")
    if checkpoint.local_dir is not None:
        tiers.append(f"{checkpoint.local_dir} {every(checkpoint.local_every_steps)}")
    tiers.append(f"storage {every(checkpoint.every_steps)}" if checkpoint.every_steps else "storage at the end")
    copies = f" and {memory.copies} copies" if memory.copies else ""
    return (
        f"{', '.join(tiers)}; {memory.slots} slots{copies} of {gigabytes(memory.slot_bytes)} for each rank, "
        f"{gigabytes(memory.snapshot_bytes)} of a node"
        + (f"; {standby_words(memory)}" if config.worker.standby else "")
    )


def standby_words(memory: SnapshotMemory) -> str:
    return f"ranks that stand by for a restart, up to {gigabytes(memory.ranks_bytes)} of a node"


def disk_words(config: RunConfig, memory: SnapshotMemory) -> str:
    """For `plan`: `on each node's disk /scratch every 10 steps, the newest 2: at most 45.0 MB`, with the one that is
    being written."""
    checkpoint = config.checkpoint
    kept = checkpoint.local_keep_last
    num_bytes = (kept + 1) * memory.share_bytes * memory.workers
    where = f"on each node's disk {checkpoint.local_dir} {every(checkpoint.local_every_steps)}"
    return f"{where}, the newest {kept}: at most {gigabytes(num_bytes)}"


def every(steps: int) -> str:
    return "every step" if steps == 1 else f"every {steps:,} steps"


def interval_words(config: RunConfig, counts: SnapshotCounts) -> str | None:
    """Where snapshots or copies came at longer intervals than asked for."""
    snapshot, words = config.snapshot, []
    steps = counts.due * snapshot.every_steps
    if snapshot.every_steps and 0 < counts.taken < counts.due:
        words.append(f"one every {steps / counts.taken:.1f} steps instead of {every(snapshot.every_steps)}")
    wanted, copied = snapshot.replicate_every_steps, counts.copied
    if wanted and copied is not None and copied + COPIES_UNHEARD_OF < steps // wanted:
        between = f"{steps / max(1, copied):.1f}"
        if not copied:
            words.append(f"none of {plural(steps, 'step')} has been copied to peers")
        elif float(between) > wanted:
            words.append(f"copied to peers every {between} steps instead of {every(wanted)}")
    return "; ".join(words) or None


def memory_words(found_bytes: int, planned_bytes: int, agent_bytes: int) -> str:
    """`snapshots 45.9 MB of a node, 46.1 MB planned; its agent 190.3 MB at most`"""
    return (
        f"snapshots {gigabytes(found_bytes)} of a node, {gigabytes(planned_bytes)} planned; "
        f"its agent {gigabytes(agent_bytes)} at most"
    )
