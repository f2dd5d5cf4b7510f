"""`cluster.slurm`: what `phalanx submit` asks SLURM for. Plan half."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class ContainerRuntime(StrEnum):
    none = "none"
    pyxis = "pyxis"
    """NVIDIA's SLURM plugin over Enroot: srun takes --container-image."""
    apptainer = "apptainer"
    """`apptainer exec` around what runs on the nodes."""


@dataclass(kw_only=True, slots=True)
class ContainerConfig:
    runtime: ContainerRuntime = ContainerRuntime.none
    image: str | None = None
    """As the runtime takes it: nvcr.io#nvidia/pytorch:26.08-py3, or a .sqsh or .sif file that all nodes see."""
    mounts: list[str] = field(default_factory=list)
    """SOURCE:TARGET or one path for both; the run's, the data's and the working folder must be among them."""
    arguments: list[str] = field(default_factory=list)
    """More words for srun (pyxis) or `apptainer exec`, as in [--nv]."""


@dataclass(kw_only=True, slots=True)
class PreflightConfig:
    """A check of the job's nodes before Ray starts on them; bad ones are left out."""

    enabled: bool = True
    min_rate: float = 0.5
    """Least speed of a node (matrix product, all-reduce with another node), as a share of the other nodes' median."""
    timeout_s: float = 120.0
    """How long a node may take to say how it is; one that says nothing is bad."""


class SlurmRequeue(StrEnum):
    requeue = "requeue"
    """The job puts itself back into the queue (`scontrol requeue`): same job id, same output file."""
    chain = "chain"
    """Where that is forbidden: the job submits its successor, which waits for its end (--dependency=singleton)."""
    never = "never"


@dataclass(kw_only=True, slots=True)
class SlurmConfig:
    """What `phalanx submit` asks SLURM for. Null leaves a directive out: then the site's default counts."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_limit_min: int | None = None
    """Time limit of one job in minutes; the run goes on in the next one."""
    notice_s: int = 180
    """SIGUSR1 comes so long before the time limit: time for a checkpoint. SLURM may send it up to a minute early."""
    requeue: SlurmRequeue = SlurmRequeue.requeue
    """How a run goes on that was not finished at its job's time limit, or that lost a node."""
    spare_nodes: int = 0
    """Nodes beyond what the workers need: one takes the place of a node that fails."""
    gpus_per_node: int | None = None
    """null: cluster.workers_per_node with GPUs, none on CPUs."""
    gpu_type: str | None = None
    """As the site's GRES names it: h100."""
    cpus_per_node: int | None = None
    """null: cluster.workers_per_node * cluster.cpus_per_worker."""
    memory_per_node: str | None = None
    """As in 200G; 0 is all that a node has."""
    constraint: str | None = None
    exclude: str | None = None
    """Nodes not to use, as in n[1-3],n7."""
    reservation: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Any other directive: {exclusive: true, mail-type: END} becomes --exclusive and --mail-type=END."""
    setup: list[str] = field(default_factory=list)
    """Lines of bash that the job runs first (module load, conda activate). The only text that a shell reads as it
    stands."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Variables for everything in the job; not for secrets: they are written into the script."""
    python: str | None = None
    """The interpreter on the nodes; null: the one that submits, or python3 in a container."""
    container: ContainerConfig = field(default_factory=ContainerConfig)
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
