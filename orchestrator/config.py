"""RunConfig: what the person chose. Composed by Hydra, plain dataclasses from then on. Plan half.

Schemas are mutable because Hydra refuses to compose frozen ones; nothing changes them after composition.
A field without a default must come from a YAML file or an override. Checks that need more than one field,
and ranges, are in `validate.py`.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from model.config import ModelConfig
from orchestrator.kuberay_config import KubeRayConfig
from orchestrator.slurm_config import SlurmConfig


@dataclass(kw_only=True, slots=True)
class RunSettings:
    id: str | None = None
    """Names the run folder `root/id`; null: the name below and 8 hexadecimal digits of the run's fingerprint."""
    name: str | None = None
    """First half of the default id; an experiment sets it; null takes model.name."""
    root: str = "runs"
    seed: int = 1234
    """Seeds the initial weights, the data order and dropout."""


class OnBad(StrEnum):
    skip = "skip"
    """Name the file, leave it out, count it."""
    error = "error"
    """Refuse to prepare."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    path: str | None = None
    """Folder (or fsspec URL) of the prepared data: manifest.json and the token shards."""
    source: Any = None
    """For `prepare`: a file, a glob, an fsspec URL or a list of them; `python:stdlib` is the standard library."""
    tokenizer: str | None = None
    """For `prepare`: a Hugging Face tokenizer.json to load; null trains a byte-level BPE on the source."""
    vocab_size: int | None = None
    """For `prepare`: vocabulary to train; null takes model.vocab_size, else 8192."""
    text_field: str = "text"
    """For `prepare`: the field (jsonl) or column (parquet) that holds a document's text."""
    on_bad: OnBad = OnBad.skip
    validation_fraction: float = 0.01
    """For `prepare`: share of the documents kept for validation, chosen by a hash of their text."""
    tokenizer_sample_bytes: int = 64_000_000
    """For `prepare`: how much text the tokenizer is trained on."""
    isolate_documents: bool = False
    """Tokens attend only to their own document where one row holds several."""
    prefetch_batches: int = 2
    """Batches that each rank's loader thread reads ahead of the training loop, at least; it reads small ones many at
    a time."""


class OptimizerName(StrEnum):
    adamw = "adamw"
    adam = "adam"
    sgd = "sgd"


class Schedule(StrEnum):
    cosine = "cosine"
    linear = "linear"
    constant = "constant"
    wsd = "wsd"
    """Warm-up, stable, then a linear decay over the last `decay_fraction` (MiniCPM, arXiv 2404.06395)."""


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    name: OptimizerName = OptimizerName.adamw
    lr: float = 3e-4
    """Peak learning rate."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Applied to matrices only; biases and norms are never decayed."""
    momentum: float = 0.9
    """SGD only."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    schedule: Schedule = Schedule.cosine
    warmup_steps: int = 0
    schedule_steps: int | None = None
    """Length of the schedule in steps; null: train.steps at the first start, fixed from then on."""
    min_lr_ratio: float = 0.1
    """Learning rate at the end of the schedule, as a share of `lr`."""
    decay_fraction: float = 0.2
    """wsd only: share of the schedule spent on the decay."""


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    steps: int
    global_batch_size: int
    """Samples per optimizer step over the whole world; never depends on the world size."""
    micro_batch_size: int
    """Samples per rank per forward pass."""
    seq_len: int | None = None
    """Tokens per sample; null takes model.max_seq_len."""
    precision: Precision = Precision.fp32
    eval_every_steps: int = 0
    """Evaluate on the validation split every so many steps; 0 never."""
    eval_rows: int = 64
    """Rows of the validation split each evaluation reads (fewer where the split is smaller)."""


class Offload(StrEnum):
    none = "none"
    optimizer = "optimizer"
    """Optimizer states and step on the CPU (ZeRO-Offload)."""
    params = "params"
    """Optimizer states and parameters on the CPU (ZeRO stage 3 only)."""
    nvme = "nvme"
    """Optimizer states and parameters on a local disk (ZeRO-Infinity, stage 3 only)."""


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    zero_stage: int = 1
    offload: Offload = Offload.none
    nvme_path: str | None = None
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass."""
    bucket_elements: int | None = None
    """Elements per reduce and all-gather bucket; null derives it from the model's size."""
    ds_config: dict[str, Any] = field(default_factory=dict)
    """Any DeepSpeed settings, merged last; keys that the plan owns are refused."""


class Device(StrEnum):
    auto = "auto"
    """CUDA where the node has GPUs, else CPU."""
    cpu = "cpu"
    cuda = "cuda"


class Scheduler(StrEnum):
    slurm = "slurm"
    kuberay = "kuberay"
    """Kubernetes, by a RayJob for KubeRay."""


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    name: str
    num_workers: int = 1
    """Workers (ranks) in total, over all nodes: one GPU each, or CPU cores."""
    min_workers: int | None = None
    """Fewest workers to go on with where a node is lost and no other takes its place; null: all of them, the run then
    waits for a node."""
    workers_per_node: int | None = None
    """null: as many as a node holds."""
    cpus_per_worker: int = 1
    device: Device = Device.auto
    hardware: str | None = None
    """The accelerator's name in the hardware table (h100, a100, ...): memory and peak for `plan` and MFU."""
    memory_bytes_per_worker: int | None = None
    """What one rank has, for `plan`, which fills a GPU to 92 % of it; null takes the hardware table's figure."""
    memory_bytes_per_node: int | None = None
    """Host memory of a node, for ranks and snapshots; null: what Ray says of the nodes (not known to `plan`)."""
    address: str | None = None
    """An existing Ray cluster: `auto` or HOST:PORT; null joins $RAY_ADDRESS if set, else starts Ray here."""
    failure_domains: dict[str, list[str]] = field(default_factory=dict)
    """What is lost together (a rack, a switch) -> its host names, with `*` for any: copies of snapshots go to a node
    of another domain. {}: by failure_domain_label, else by the switches that SLURM names (topology/tree)."""
    failure_domain_label: str | None = None
    """Ray node label that names a node's failure domain, as in ray.io/availability-zone."""
    network_interface: str | None = None
    """Interface for gloo and NCCL; null finds the one that holds the node's address."""
    start_timeout_s: float = 120.0
    """How long to wait for the nodes to offer what the placement needs."""
    replace_timeout_s: float = 10.0
    """How long another node may take to step in for a lost one, before the run goes on with fewer workers."""
    grow_interval_s: float = 60.0
    """How long the run trains with fewer workers, at least, before it takes a node that has come back."""
    scheduler: Scheduler | None = None
    """Who `phalanx submit` hands the run to, with the settings below `slurm` (also where this is null) or `kuberay`.
    `phalanx sweep` becomes a job array with slurm."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """For `phalanx submit` only."""
    kuberay: KubeRayConfig = field(default_factory=KubeRayConfig)
    """For `phalanx submit` only."""


class WorkerStart(StrEnum):
    fork = "fork"
    """Ranks are forked from a zygote that has already imported everything: milliseconds."""
    spawn = "spawn"
    """Ranks import everything themselves: seconds, where forking is not possible."""


@dataclass(kw_only=True, slots=True)
class WorkerConfig:
    start: WorkerStart = WorkerStart.fork
    start_timeout_s: float = 300.0
    """From the start of an attempt to the first step of its slowest rank."""
    threads: int | None = None
    """Intra-operation threads per rank; null takes cluster.cpus_per_worker."""
    standby: bool | None = None
    """Ranks that stand by with their engines built, for the next attempt to begin with: recovery takes about a third
    as long, and a node holds each rank twice. null: where ranks run on CPUs and nodes have the memory for that."""


@dataclass(kw_only=True, slots=True)
class SnapshotConfig:
    every_steps: int = 1
    """A snapshot in the agents' memory every so many steps, copied while the next step computes; 0 takes one only
    where a checkpoint is due, on its way to storage."""
    replicate_every_steps: int = 1
    """With several nodes: a copy in a peer node's memory every so many steps, or as often as the network bears;
    0 never: a lost node then costs the steps since the last checkpoint."""
    slots: int | None = None
    """Snapshots that each rank's agent has room for; null: 3 (newest, being written, on its way to storage), 2 more
    where peers hold copies (being copied, newest that all peers hold), 1 more with checkpoint.local_dir."""


class BestMetric(StrEnum):
    loss = "loss"
    """Training loss of the step."""
    eval_loss = "eval_loss"
    """Validation loss; only of steps that are evaluated (train.eval_every_steps)."""


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    every_steps: int = 100
    """A checkpoint every so many steps, and always one at the end; 0: only at the end."""
    url: str | None = None
    """Folder or fsspec URL; null: `checkpoints` in the run folder. Every node must reach it."""
    local_dir: str | None = None
    """Folder on each node's own disk for checkpoints beside `url`, written more often and kept shortly: the death of
    everything but the disks then costs the steps since the last one. null: none."""
    local_every_steps: int = 10
    """With local_dir: a checkpoint on the nodes' disks every so many steps, or as often as the slowest disk bears."""
    local_keep_last: int = 2
    """With local_dir: newest checkpoints to keep on each node's disk; all go when the run has finished."""
    keep_last: int = 3
    """Newest committed checkpoints to keep; 0 keeps all."""
    keep_every_steps: int = 0
    """Checkpoints of every so many steps are kept for good; 0 none."""
    keep_best: int = 0
    """This many checkpoints with the lowest `best_metric` are kept, too; 0 none."""
    best_metric: BestMetric = BestMetric.loss
    init_from: str | None = None
    """Folder or URL of checkpoints (as `phalanx ckpt import` writes) that the run starts from while it has none of
    its own."""
    encrypt: bool = False
    """Encrypt what is written to storage (AES-256-GCM) with the key in $PHALANX_CHECKPOINT_KEY or `key_file`."""
    key_file: str | None = None
    """File with the key, the base64 text of 32 bytes, on every node; null: $PHALANX_CHECKPOINT_KEY."""
    retry_timeout_s: float = 600.0
    """How long a checkpoint is tried again where the store does not answer; training goes on meanwhile."""
    final_timeout_s: float = 1800.0
    """How long the last checkpoint of a run waits for a store that fails, whatever the cause."""


@dataclass(kw_only=True, slots=True)
class FaultConfig:
    max_restarts: int = 10
    """Attempts that may fail before the run does."""
    max_identical_failures: int = 3
    """The same failure at the same step so often in a row ends the run: it would only happen again."""
    collective_timeout_s: float = 600.0
    """A collective that takes longer fails its rank."""
    lease_timeout_s: float = 15.0
    """A node that hears nothing from the driver for so long stops its ranks; a node that the driver hears nothing
    from for so long is lost."""
    preemption_grace_s: float | None = None
    """How long after SIGTERM or SIGUSR1 the machine is taken away, where that is known: a run that could not save by
    then ends by itself. Ray's drain of a node brings its own time."""
    driver_grace_s: float = 600.0
    """How long a node without a driver then keeps its snapshots for the next one, before it releases everything."""
    hang_timeout_factor: float = 3.0
    """Ranks that stand still for so many times what a step usually takes, and hang_constant_s, hang: their stacks are
    written to their logs and they are started anew. 0 turns this off."""
    hang_constant_s: float = 5.0
    """Added to that. What has not been seen yet (the start, the first steps) may take worker.start_timeout_s."""
    max_rollbacks: int = 3
    """A loss or gradient norm that is NaN or infinite sends the run back to the step before, and the window that it
    read is skipped; so many times without getting past that step, then the run fails. 0 fails at once."""
    spike_threshold: float = 0.0
    """A loss so many robust standard deviations above the median of the last spike_window steps is treated like NaN;
    10 finds what is plainly out of line. 0 looks for none: most spikes heal, and skipping data is yours to decide."""
    spike_window: int = 64
    """Steps that say what loss is normal, at most 1,000; no spike is found before there are so many."""
    check_replicas_every_steps: int = 0
    """Every so many steps, compare the ranks' checksums of the parameters, which all hold alike (ZeRO stages 0 to 2):
    a bit that changed without an error shows. 0 never."""
    recheck_every_steps: int = 0
    """Every so many steps, do a step again from the snapshot before it and compare every bit; costs that step's time.
    0 never."""
    straggler_factor: float = 1.5
    """A rank that takes so many times as long as the others for the same phase, step after step, is named; 0 looks
    for none."""
    evict_straggler_after_steps: int = 0
    """A rank that is named and still slow so many steps later has its node left, where another has room or
    cluster.min_workers allows to do without; 0 never."""
    avoid_after_losses: int = 3
    """A node that a run has lost so often is left alone while others have room (bad_nodes.txt); 0: never."""


class WandbMode(StrEnum):
    auto = "auto"
    """Online where an API key is configured, else offline."""
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class WandbConfig:
    mode: WandbMode = WandbMode.auto
    project: str = "phalanx"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    job_type: str | None = None
    """`train` or so: W&B groups runs by it within a group."""
    start_timeout_s: float = 20.0
    """How long W&B may take to answer at the start, in the background; then the run is recorded offline."""
    close_timeout_s: float = 45.0
    """How long the end of the run waits for W&B's uploads; what is missing then is sent by `phalanx sync`."""


@dataclass(kw_only=True, slots=True)
class PrometheusConfig:
    port: int | None = None
    """Port of the driver's host where Prometheus finds the run's metrics; 0 takes a free one, null: none."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    every_steps: int = 1
    """A row of metrics.jsonl (and a point in W&B) every so many steps."""
    console_every_steps: int = 10
    wandb: WandbConfig = field(default_factory=WandbConfig)
    prometheus: PrometheusConfig = field(default_factory=PrometheusConfig)
    tensorboard: bool = False
    """Rows for TensorBoard in the run folder's `tensorboard/`."""


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """A whole run. One group folder in `conf/` for each field that has choices."""

    run: RunSettings
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    parallel: ParallelConfig
    cluster: ClusterConfig
    worker: WorkerConfig
    snapshot: SnapshotConfig
    checkpoint: CheckpointConfig
    fault: FaultConfig
    tracking: TrackingConfig
