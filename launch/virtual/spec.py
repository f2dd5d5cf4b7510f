"""What a virtual cluster is made of: names, addresses, sizes. Plan half."""

import re
from dataclasses import dataclass

DEFAULT_NAME = "v"
MAX_NODES = 100
NAME = re.compile(r"[a-z]{1,8}")
SUBNET = "10.77.0"
FIRST_HOST = 10
"""The head's last octet; node k follows it by k."""
NETMASK_BITS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """The process that a cluster is for. Its number and its birth name one process for good."""

    pid: int
    born_s: float
    pid_namespace: str
    """Where the number was given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VirtualSpec:
    """One virtual cluster: a head, where slurmctld runs and jobs are submitted, and nodes that run them.

    Node 0 is the head: the cluster `v` with two nodes has `v0` (head), `v1` and `v2`. Several clusters live on one
    machine, each on a network of its own, so all use the same addresses.
    """

    name: str = DEFAULT_NAME
    nodes: int = 3
    """Without the head."""
    cpus: int = 8
    """What SLURM is told that each node has; the machine's own cores are shared by all."""
    memory_mib: int = 6000
    """As `cpus`. Jobs that take more than they asked for are killed where SLURM has cgroups."""
    gpus: int = 0
    """Device files per node that SLURM hands out as GPUs. They are copies of /dev/null."""
    gpu_type: str = "h100"
    shm_mib: int = 1024
    """Size of each node's /dev/shm."""
    has_cgroups: bool = True
    """Whether SLURM tracks its jobs by cgroups (version 1). Without: by their process tree."""
    slurm_lines: tuple[str, ...] = ()
    """More lines of slurm.conf."""
    keep: tuple[str, ...] = ()
    """Folders below /tmp that stay visible in the nodes, whose /tmp is their own."""
    owner: Owner | None = None
    """Once it is gone, the next cluster that comes up takes this one down. None: it stays until `down`."""

    @property
    def head(self) -> str:
        return f"{self.name}0"

    @property
    def compute_nodes(self) -> tuple[str, ...]:
        """Names of the nodes that run jobs."""
        return tuple(f"{self.name}{number}" for number in range(1, self.nodes + 1))

    @property
    def all_nodes(self) -> tuple[str, ...]:
        return (self.head, *self.compute_nodes)

    def address(self, node: str) -> str:
        """The IPv4 address of a node of this cluster."""
        return f"{SUBNET}.{FIRST_HOST + int(node.removeprefix(self.name))}"


def spec_problems(spec: VirtualSpec) -> tuple[str, ...]:
    """One sentence for each value that can't be."""
    problems = []
    if not NAME.fullmatch(spec.name):
        problems.append(f"--name {spec.name} must be 1 to 8 letters from a to z: nodes are called by it and a number")
    if not 1 <= spec.nodes <= MAX_NODES:
        problems.append(f"{spec.nodes} nodes can't be brought up; use 1 to {MAX_NODES}")
    for option, value, least in (
        ("--cpus", spec.cpus, 1),
        ("--memory-mib", spec.memory_mib, 64),
        ("--shm-mib", spec.shm_mib, 1),
        ("--gpus", spec.gpus, 0),
    ):
        if value < least:
            problems.append(f"{option} {value} is too small; use {least} or more")
    problems += [
        f"--keep {folder} is not below /tmp; what is elsewhere is visible anyway"
        for folder in spec.keep
        if not folder.startswith("/tmp/")
    ]
    return tuple(problems)
