"""What a site's partitions have, and what in a request they can't give. Plan half."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from launch.slurm.request import JobRequest
from launch.suggest import not_known
from orchestrator.slurm_config import SlurmConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeKind:
    """Nodes of a partition that are alike."""

    count: int
    cpus: int
    gpus: dict[str, int]
    """By type; `gpu` where the site names none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    name: str
    is_default: bool
    time_limit_min: int | None
    """None is without limit."""
    kinds: list[NodeKind] = field(default_factory=list)


def parse_partitions(text: str) -> list[Partition]:
    """Lines `NAME|NAME*|nodes|cpus|memory|gres|time limit` of sinfo; a `+` means: and more on some."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        name, marked, count, cpus, _, gres, limit = line.split("|")
        if name not in found:
            found[name] = Partition(
                name=name, is_default=marked.endswith("*"), time_limit_min=_minutes(limit), kinds=[]
            )
        kind = NodeKind(count=int(count), cpus=int(cpus.rstrip("+")), gpus=_gpus(gres))
        found[name].kinds.append(kind)
    return list(found.values())


def request_problems(slurm: SlurmConfig, request: JobRequest, partitions: Sequence[Partition]) -> list[str]:
    """One sentence for each thing that no node of the partition has."""
    names = [partition.name for partition in partitions]
    if slurm.partition is None:
        chosen = [partition for partition in partitions if partition.is_default]
    else:  # SLURM takes several, with commas between
        chosen = [partition for partition in partitions if partition.name in slurm.partition.split(",")]
        unknown = [word for word in slurm.partition.split(",") if word not in names]
        if unknown:
            return [not_known(f"cluster.slurm.partition={word}", word, names) for word in unknown]
    kinds = [kind for partition in chosen for kind in partition.kinds]
    if not kinds:
        return []
    where = f"partition {','.join(partition.name for partition in chosen)}"
    return [*_node_problems(slurm, request, kinds, where), *_time_problems(slurm, chosen)]


def _node_problems(slurm: SlurmConfig, request: JobRequest, kinds: Sequence[NodeKind], where: str) -> Iterator[str]:
    gpu_types = sorted({name for kind in kinds for name in kind.gpus})
    gpus, most_gpus = request.gpus_per_node, max(_gpus_of(kind, request.gpu_type) for kind in kinds)
    if request.gpus_per_node and request.gpu_type and request.gpu_type not in gpu_types:
        yield not_known(f"cluster.slurm.gpu_type={request.gpu_type} in {where}", request.gpu_type, gpu_types)
    elif gpus > most_gpus:
        yield (
            f"{gpus} GPUs per node are more than any node of {where} has ({most_gpus}); "
            f"use cluster.workers_per_node={most_gpus or 1}" + ("" if most_gpus else " and cluster.device=cpu")
        )
    most_cpus = max(kind.cpus for kind in kinds)
    if request.cpus_per_node > most_cpus:
        yield (
            f"{request.cpus_per_node} CPUs per node are more than any node of {where} has ({most_cpus}); lower "
            "cluster.cpus_per_worker or cluster.workers_per_node"
        )
    count = sum(kind.count for kind in kinds)
    if request.all_nodes > count:
        spare = f" and {slurm.spare_nodes} spare" if slurm.spare_nodes else ""
        yield (
            f"{request.nodes} nodes{spare} are more than {where} has ({count}); lower cluster.num_workers, or raise "
            "cluster.workers_per_node"
        )


def _time_problems(slurm: SlurmConfig, chosen: Sequence[Partition]) -> Iterator[str]:
    limits = [partition.time_limit_min for partition in chosen]
    wanted = slurm.time_limit_min
    if wanted is not None and all(limit is not None and limit < wanted for limit in limits):
        longest = max(limit for limit in limits if limit is not None)
        yield (
            f"cluster.slurm.time_limit_min={wanted} is longer than the partition allows ({longest}); use {longest}: "
            "the run goes on in the next job"
        )


def _gpus_of(kind: NodeKind, gpu_type: str | None) -> int:
    return sum(kind.gpus.values()) if gpu_type is None else kind.gpus.get(gpu_type, 0)


def _gpus(gres: str) -> dict[str, int]:
    """`gpu:h100:8(S:0-1),nvme:1` -> {h100: 8}."""
    found: dict[str, int] = {}
    for match in re.finditer(r"\bgpu:(?:([A-Za-z][\w.-]*):)?(\d+)", gres):
        found[match[1] or "gpu"] = found.get(match[1] or "gpu", 0) + int(match[2])
    return found


def _minutes(limit: str) -> int | None:
    """`1-02:30:00`, `30:00` -> minutes; None for infinite and n/a."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if match is None:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes
