"""The values that flow from a config to the ranks: RunPlan, Placement, ResumePoint, WorkerSpec. Plan half.

Chosen by a person: `...Config`. Derived and frozen: everything here. All of it is JSON at heart, so that
`plan.json` and a worker's spec can be read by people.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from model.config import ModelConfig
from orchestrator.config import (
    CheckpointConfig,
    DataConfig,
    FaultConfig,
    OptimConfig,
    Precision,
    SnapshotConfig,
    TrainConfig,
)
from orchestrator.data.manifest import Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchShape:
    """How one optimizer step's samples spread over ranks and micro-steps.

    96 samples, micro-batches of 4, 8 ranks: 3 micro-steps. 100 samples would need 4, the last of them with
    padding rows of zero weight (only after a resize: the first start refuses what does not divide).
    """

    global_batch_size: int
    micro_batch_size: int
    world_size: int
    seq_len: int

    @property
    def micro_steps(self) -> int:
        """Forward and backward passes per rank and optimizer step (gradient accumulation)."""
        per_pass = self.micro_batch_size * self.world_size
        return -(-self.global_batch_size // per_pass)

    @property
    def tokens_per_step(self) -> int:
        """Target tokens of the global batch: what the summed loss is divided by."""
        return self.global_batch_size * self.seq_len

    @property
    def is_even(self) -> bool:
        return self.global_batch_size % (self.micro_batch_size * self.world_size) == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
    """Peak bytes of one rank, by what they hold."""

    parameters: int
    gradients: int
    optimizer: int
    """fp32 masters and moments."""
    activations: int
    logits: int
    buffers: int
    """Communication buckets."""
    host: int
    """Offloaded bytes, in CPU memory (or on NVMe)."""

    @property
    def device_total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.logits + self.buffers


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of one optimizer step on its slowest rank, by what they go into; they add up."""

    forward_backward: float
    recompute: float
    """Activation checkpointing's second forward pass."""
    communication: float
    """What no backward pass hides."""
    update: float
    """The optimizer's reads and writes, and offload's transfers."""
    overhead: float = 0.0
    """What a step takes on a CPU however small the model."""

    @property
    def total(self) -> float:
        return self.forward_backward + self.recompute + self.communication + self.update + self.overhead


class TimeSource(StrEnum):
    """What an estimate of time rests on."""

    table = "table"
    """The accelerator's data sheet."""
    probe = "probe"
    """`phalanx doctor --probe` on the host that plans."""
    assumption = "assumption"


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """What a run is expected to take, to be compared with what it took."""

    time: StepTime
    source: TimeSource
    basis: str
    """For people, after `from the`: `data sheet of h100, at 50% of its peak`, `probe of node7, 2026-11-27`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """Everything that follows from the config (and the manifest) before anything starts."""

    run_id: str
    fingerprint: str
    """16 hexadecimal digits over `identity`."""
    identity: dict[str, Any]
    """Dotted key -> value of all that makes this run this run: a difference is refused on resume."""
    model: ModelConfig
    """With every null resolved: vocab_size, num_kv_heads."""
    batch: BatchShape
    precision: Precision
    zero_stage: int
    device: str
    """`cpu` or `cuda`."""
    steps: int
    schedule_steps: int
    parameters: int
    """Distinct trainable parameters (tied ones once)."""
    flops_per_token: int
    """Forward and backward, attention included."""
    memory_by_stage: dict[int, RankMemory]
    """ZeRO stage -> peak of one rank; this plan's own stage is `zero_stage`."""
    peak_flops_per_worker: float | None
    """From the hardware table; None where the peak is not known (a CPU)."""
    ds_config: dict[str, Any]
    predicted: Predicted | None = None
    """Of a step at the first world size; None where nothing is known of the device at this precision."""
    process_bytes: int | None = None
    """On a CPU the peak of a rank's whole process as the kernel counts it; set when the nodes are known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFacts:
    """What a machine offers."""

    name: str
    cpus: int
    gpus: int
    memory_bytes: int | None = None
    """Host memory for ranks and snapshots, where that is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """One node's reservation: `workers` ranks, one agent."""

    workers: int
    cpus: int
    gpus: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RankPlace:
    rank: int
    node: int
    """Index into `Placement.bundles`."""
    local_rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    bundles: tuple[Bundle, ...]
    ranks: tuple[RankPlace, ...]

    @property
    def nodes(self) -> tuple[int, ...]:
        """Those that have ranks; a bundle whose node was lost has none."""
        return tuple(sorted({place.node for place in self.ranks}))


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint:
    """Where an attempt starts. A fresh run is ResumePoint(step=0)."""

    step: int = 0
    """Optimizer steps already done."""
    source: str = "start"
    """`start` (the seeded initial weights), `memory` (the agents' snapshots), `peer` (with a lost node's from
    its peer), `disk` or `remote`."""
    checkpoint: str | None = None
    """URL of the committed checkpoint's folder; set for disk and remote."""
    world_size: int | None = None
    """Of the ranks that made the snapshots; set for memory and peer."""
    is_durable: bool = True
    """False where storage does not have this step (yet): a checkpoint that is due at it is taken again."""
    skipped_windows: tuple[int, ...] = ()
    """Indices of global batches that are never trained on."""
    branch: int = 0
    """How many rollbacks led here."""
    is_initial: bool = False
    """Not the run's own checkpoint but `checkpoint.init_from`: moments that it lacks are zero."""
    is_spread: bool = False
    """The checkpoint is on the nodes' own disks: files that this node lacks are read through other agents."""

    @property
    def is_in_memory(self) -> bool:
        return self.source in ("memory", "peer")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSpec:
    """All that one rank needs; a worker reads no other config."""

    run_id: str
    fingerprint: str
    attempt: int
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    node: int
    device: str
    threads: int
    seed: int
    steps: int
    schedule_steps: int
    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig
    data: DataConfig
    manifest: Manifest
    snapshot: SnapshotConfig
    checkpoint: CheckpointConfig
    checkpoint_url: str
    """Resolved: never None."""
    disk_folder: str | None
    """Of this run's checkpoints on each node's own disk; None: there are none."""
    peer_secret: str = field(repr=False)
    """By which the run's agents and ranks know each other."""
    num_slots: int
    """Snapshot slots of each rank."""
    num_busy_slots: int
    """Of them, what may be in use without a checkpoint on its way to storage."""
    has_peer: bool
    """Another node holds copies of this one's snapshots."""
    batch: BatchShape
    zero_stage: int
    activation_checkpointing: bool
    ds_config: dict[str, Any]
    resume: ResumePoint
    store_host: str
    store_port: int
    network_interface: str | None
    fault: FaultConfig
