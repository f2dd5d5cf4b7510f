"""RunConfig -> what is asked of SLURM, as a value and as #SBATCH directives. Plan half."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launch.machine_size import machine_size_problems
from orchestrator.config import ClusterConfig
from orchestrator.errors import ConfigError
from orchestrator.slurm_config import ContainerRuntime, SlurmRequeue

_DIRECTIVE = re.compile(r"[a-z][a-z0-9-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MEMORY = re.compile(r"\d+[KMGT]?")
_OWNED = {
    "job-name": "run.id",
    "partition": "cluster.slurm.partition",
    "account": "cluster.slurm.account",
    "qos": "cluster.slurm.qos",
    "nodes": "cluster.num_workers and cluster.workers_per_node",
    "ntasks": "cluster.num_workers",
    "ntasks-per-node": "cluster.workers_per_node",
    "cpus-per-task": "cluster.slurm.cpus_per_node",
    "gpus": "cluster.slurm.gpus_per_node",
    "gres": "cluster.slurm.gpus_per_node",
    "gpus-per-node": "cluster.slurm.gpus_per_node",
    "mem": "cluster.slurm.memory_per_node",
    "time": "cluster.slurm.time_limit_min",
    "signal": "cluster.slurm.notice_s",
    "requeue": "cluster.slurm.requeue",
    "no-requeue": "cluster.slurm.requeue",
    "constraint": "cluster.slurm.constraint",
    "exclude": "cluster.slurm.exclude",
    "reservation": "cluster.slurm.reservation",
    "output": "run.root",
    "error": "run.root",
    "open-mode": "run.root",
    "chdir": "run.root",
    "array": "phalanx sweep",
    "no-kill": "cluster.slurm.spare_nodes",
}
"""Directives that the plan writes, and so `extra` may not: -> what decides them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRequest:
    """Sizes of one job. `nodes` are what the workers need; SLURM is asked for `nodes + spare_nodes`."""

    nodes: int
    least_nodes: int
    """For cluster.min_workers."""
    spare_nodes: int
    workers_per_node: int
    cpus_per_node: int
    gpus_per_node: int
    gpu_type: str | None

    @property
    def all_nodes(self) -> int:
        return self.nodes + self.spare_nodes


def job_request(cluster: ClusterConfig, device: str) -> JobRequest:
    """16 workers, 8 per node, on `cuda`: 2 nodes with 8 GPUs and 8 * cluster.cpus_per_worker CPUs each."""
    per_node = cluster.workers_per_node or cluster.num_workers
    gpus = cluster.slurm.gpus_per_node
    if gpus is None:
        gpus = per_node if device == "cuda" else 0
    return JobRequest(
        nodes=-(-cluster.num_workers // per_node),
        least_nodes=-(-(cluster.min_workers or cluster.num_workers) // per_node),
        workers_per_node=per_node,
        spare_nodes=cluster.slurm.spare_nodes,
        cpus_per_node=cluster.slurm.cpus_per_node or per_node * cluster.cpus_per_worker,
        gpus_per_node=gpus,
        gpu_type=cluster.slurm.gpu_type,
    )


def profile_problems(cluster: ClusterConfig, device: str) -> list[str]:
    """What can't be in a profile, one sentence each; known without asking SLURM."""
    return [*_size_problems(cluster, device), *_text_problems(cluster), *_container_problems(cluster)]


def _size_problems(cluster: ClusterConfig, device: str) -> Iterator[str]:
    slurm = cluster.slurm
    if cluster.address is not None:
        yield (
            f"cluster.address={cluster.address} can't be used with submit, which starts a Ray in its own job; "
            "leave it out, or use phalanx train to join that cluster"
        )
    yield from machine_size_problems(
        cluster,
        device,
        scheduler="slurm",
        machines="nodes",
        gpus_per_node=slurm.gpus_per_node,
        cpus_per_node=slurm.cpus_per_node,
    )
    limit_min = slurm.time_limit_min
    if limit_min is not None and slurm.notice_s >= limit_min * 60:
        yield (
            f"cluster.slurm.notice_s={slurm.notice_s} leaves nothing of cluster.slurm.time_limit_min={limit_min} "
            "to train in; raise the limit, or shorten the notice"
        )


def _text_problems(cluster: ClusterConfig) -> Iterator[str]:
    slurm = cluster.slurm
    for name in ("partition", "account", "qos", "gpu_type", "constraint", "exclude", "reservation", "python"):
        value = getattr(slurm, name)
        if value is not None and (_CONTROL.search(value) or "'" in value or not value.strip()):
            yield f"cluster.slurm.{name}={value!r} is not one line of plain text; correct it, or leave it out"
    if slurm.memory_per_node is not None and not _MEMORY.fullmatch(slurm.memory_per_node):
        yield (
            f"cluster.slurm.memory_per_node={slurm.memory_per_node} is not a size; use a number with K, M, G or T, "
            "as in cluster.slurm.memory_per_node=200G"
        )
    for name, value in slurm.extra.items():
        where = f"cluster.slurm.extra.{name}"
        if not _DIRECTIVE.fullmatch(name):
            yield f"{where} is not a directive; write it as sbatch does without dashes, as in mail-type"
        elif name in _OWNED:
            yield f"{where} would contradict what phalanx writes; set {_OWNED[name]} instead"
        elif isinstance(value, dict | list) or _CONTROL.search(str(value)) or "'" in str(value):
            yield f"{where}={value!r} is not one line of plain text, a number, true or null"
    for name, value in slurm.environment.items():
        where = f"cluster.slurm.environment.{name}"
        if not _VARIABLE.fullmatch(name):
            yield f"{where} is not a variable's name; use letters, digits and _"
        elif isinstance(value, dict | list) or value is None or _CONTROL.search(str(value)):
            yield f"{where}={value!r} is not one line of text or a number"
    for line in slurm.setup:
        if "\n" in line or "\0" in line:
            yield f"cluster.slurm.setup has an item of several lines ({line!r}); make each line an item"


def _container_problems(cluster: ClusterConfig) -> Iterator[str]:
    container = cluster.slurm.container
    if (container.runtime is ContainerRuntime.none) != (container.image is None):
        yield (
            f"cluster.slurm.container.runtime={container.runtime} and image={container.image} don't go together; "
            "set both, with runtime=pyxis or apptainer, or none"
        )
    for word in (*container.mounts, *container.arguments, *filter(None, [container.image])):
        if _CONTROL.search(word):
            yield f"cluster.slurm.container has {word!r}, which is not one line of text"


def directives(
    cluster: ClusterConfig,
    request: JobRequest,
    *,
    name: str,
    chdir: str,
    output: str,
    exclude: str | None,
    array: str | None = None,
) -> list[str]:
    """`--partition=gpu` and so on, in the order of the script, each quoted as sbatch reads it.

    `output`: a file, in whose name SLURM fills in %j. `exclude`: nodes not to use, by the config or found bad by a
    preflight. Raises ConfigError where a folder's name can't be in a script: the shell would read what follows a
    line's end.
    """
    for what, path in (("run.root", output), ("the folder that you are in", chdir)):
        if _CONTROL.search(path) or "\\" in path:
            raise ConfigError(f"{what} has a line's end or a backslash in its name ({path!r}); use another folder")
    slurm = cluster.slurm
    gpus = f"{request.gpu_type}:{request.gpus_per_node}" if request.gpu_type else str(request.gpus_per_node)
    wanted: dict[str, Any] = {
        "job-name": name,
        "array": array,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "nodes": request.all_nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": request.cpus_per_node,
        "gpus-per-node": gpus if request.gpus_per_node else None,
        "mem": slurm.memory_per_node,
        "time": slurm.time_limit_min,
        "constraint": slurm.constraint,
        "exclude": exclude,
        "reservation": slurm.reservation,
        "signal": f"B:USR1@{slurm.notice_s}",
        "no-requeue" if slurm.requeue is SlurmRequeue.never else "requeue": True,
        "no-kill": True,
        "open-mode": "append",
        "output": _pattern(output),
        "chdir": chdir,
        **slurm.extra,
    }
    return list(_written(wanted))


def _pattern(output: str) -> str:
    """As `--output` takes it: a % in the folder's name is no blank of SLURM's."""
    folder, _, name = output.rpartition("/")
    return f"{folder.replace('%', '%%')}/{name}"


def _written(wanted: Mapping[str, Any]) -> Iterator[str]:
    for key, value in wanted.items():
        if value is True:
            yield f"--{key}"
        elif value is not None and value is not False:
            yield f"--{key}={shlex.quote(str(value))}"
