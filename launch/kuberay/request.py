"""RunConfig -> the pods that are asked of Kubernetes, and what in a profile can't be. Plan half."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from launch.machine_size import machine_size_problems
from orchestrator.config import ClusterConfig, RunConfig

MAX_NAME_CHARACTERS = 47
"""KubeRay appends to a RayJob's name, and Kubernetes takes 63 for a label."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DOTTED_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
_LABEL = re.compile(r"([a-z0-9][-.a-z0-9]*/)?[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([kMGTP]i?)?")
_SUFFIXES = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_SUFFIXES |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}


@dataclass(frozen=True, kw_only=True, slots=True)
class PodRequest:
    """The worker pods: one holds the workers of one node."""

    pods: int
    """Spare ones included."""
    cpus: int
    gpus: int


def pod_request(cluster: ClusterConfig, device: str) -> PodRequest:
    """16 workers, 8 per node, on `cuda`: 2 pods with 8 GPUs and 8 * cluster.cpus_per_worker CPUs each."""
    kube, per_node = cluster.kuberay, cluster.workers_per_node or cluster.num_workers
    gpus = kube.gpus_per_node
    if gpus is None:
        gpus = per_node if device == "cuda" else 0
    return PodRequest(
        pods=-(-cluster.num_workers // per_node) + kube.spare_nodes,
        cpus=kube.cpus_per_node or per_node * cluster.cpus_per_worker,
        gpus=gpus,
    )


def num_bytes(quantity: str) -> int:
    """Kubernetes' `200Gi`, `1.5G` or plain bytes."""
    match = _QUANTITY.fullmatch(quantity)
    assert match is not None, quantity
    return int(float(match[1]) * (_SUFFIXES[match[2]] if match[2] else 1))


def profile_problems(config: RunConfig, device: str, *, has_config_dir: bool) -> list[str]:
    """What can't be in a RayJob, one sentence each; known without asking Kubernetes."""
    return [
        *_identity_problems(config),
        *_size_problems(config.cluster, device),
        *_place_problems(config, has_config_dir=has_config_dir),
        *_name_problems(config.cluster),
        *_variable_problems(config.cluster),
    ]


def _identity_problems(config: RunConfig) -> Iterator[str]:
    name, kube = config.run.id, config.cluster.kuberay
    if name is None:
        yield "run.id is not set; it names the RayJob, and a job that KubeRay starts again finds its run by it"
    elif not _NAME.fullmatch(name) or len(name) > MAX_NAME_CHARACTERS:
        yield (
            f"run.id={name} can't name a RayJob; use lower-case letters, digits and -, at most "
            f"{MAX_NAME_CHARACTERS} of them"
        )
    if kube.image is None:
        yield (
            "cluster.kuberay.image is not set; name an image in which Phalanx is installed, as in "
            "cluster.kuberay.image=registry.example/phalanx:1"
        )
    if config.cluster.address not in (None, "auto"):
        yield (
            f"cluster.address={config.cluster.address} can't be used with submit, which makes a Ray cluster of its "
            "own; leave it out, or use phalanx train to join that cluster"
        )


def _size_problems(cluster: ClusterConfig, device: str) -> Iterator[str]:
    kube = cluster.kuberay
    yield from machine_size_problems(
        cluster,
        device,
        scheduler="kuberay",
        machines="pods",
        gpus_per_node=kube.gpus_per_node,
        cpus_per_node=kube.cpus_per_node,
    )
    for name in ("memory_per_node", "head_memory"):
        value = getattr(kube, name)
        if value is not None and not _QUANTITY.fullmatch(value):
            yield (
                f"cluster.kuberay.{name}={value} is not a size; use a number with Ki, Mi, Gi or Ti, as in "
                f"cluster.kuberay.{name}=200Gi"
            )


def shortage(cluster: ClusterConfig, shm_bytes: int) -> str | None:
    """The sentence where a worker's pod is too small for what lies in its /dev/shm alone."""
    memory = cluster.kuberay.memory_per_node
    if memory is None or num_bytes(memory) > shm_bytes:
        return None
    return (
        f"cluster.kuberay.memory_per_node={memory} leaves nothing beside /dev/shm, which needs {shm_bytes >> 20} Mi "
        "for snapshots; raise it, use fewer workers on a node (cluster.workers_per_node), or lower snapshot.slots"
    )


def _place_problems(config: RunConfig, *, has_config_dir: bool) -> Iterator[str]:
    claims = config.cluster.kuberay.claims
    mounts = [path for path in claims.values() if isinstance(path, str) and path.startswith("/")]
    for name, path in claims.items():
        if not _DOTTED_NAME.fullmatch(str(name)) or path not in mounts:
            yield (
                f"cluster.kuberay.claims.{name}={path} is not a claim's name and an absolute path; write it as in "
                "cluster.kuberay.claims={shared: /shared}"
            )
    where = f"one of {', '.join(mounts)}" if mounts else "a claim, as in cluster.kuberay.claims={shared: /shared}"
    written = {"run.root": config.run.root, "checkpoint.url": config.checkpoint.url}
    for key, place in written.items():
        if place is not None and "://" not in place and not _is_below(place, mounts):
            yield f"{key}={place} would be lost with its pod; put it below {where}"
    if config.data.path is None:
        yield "data.path is not set; name a folder of prepared data as the pods see it, or a URL"
    elif "://" not in config.data.path and not config.data.path.startswith("/"):
        yield f"data.path={config.data.path} is relative, the pods have another folder; use an absolute path or a URL"
    if has_config_dir and config.cluster.kuberay.config_dir is None:
        yield (
            "--config-dir is a folder of this machine; put it into the image or on a claim, and say where: "
            "cluster.kuberay.config_dir=/shared/my_conf"
        )


def _is_below(place: str, mounts: list[str]) -> bool:
    path = PurePosixPath(place)
    return ".." not in path.parts and any(path.is_relative_to(mount) for mount in mounts)


def _name_problems(cluster: ClusterConfig) -> Iterator[str]:
    kube = cluster.kuberay
    for name in ("namespace", "service_account"):
        value = getattr(kube, name)
        if value is not None and not _DOTTED_NAME.fullmatch(value):
            yield f"cluster.kuberay.{name}={value} is not a Kubernetes name; use lower-case letters, digits and -"
    maps: dict[str, Mapping[str, Any]] = {"labels": kube.labels, "node_selector": kube.node_selector}
    for group, pairs in maps.items():
        for name, value in pairs.items():
            if not _LABEL.fullmatch(str(name)) or not _LABEL_VALUE.fullmatch(str(value)):
                yield f"cluster.kuberay.{group}.{name}={value} is not a label and its value"
    for name, value in kube.tolerations.items():
        if not _LABEL.fullmatch(str(name)) or not (value is None or _LABEL_VALUE.fullmatch(str(value))):
            yield f"cluster.kuberay.tolerations.{name}={value} is not a taint's key and its value or null"


def _variable_problems(cluster: ClusterConfig) -> Iterator[str]:
    kube = cluster.kuberay
    for group, variables in (("environment", kube.environment), ("secrets", kube.secrets)):
        for name in variables:
            if not _VARIABLE.fullmatch(str(name)):
                yield f"cluster.kuberay.{group}.{name} is not a variable's name; use letters, digits and _"
    for name, value in kube.environment.items():
        if isinstance(value, dict | list) or value is None:
            yield f"cluster.kuberay.environment.{name}={value!r} is not a text or a number"
    for name, value in kube.secrets.items():
        secret, slash, key = str(value).partition("/")
        if not (slash and key and _DOTTED_NAME.fullmatch(secret)):
            yield (
                f"cluster.kuberay.secrets.{name}={value} is not SECRET/KEY; write the secret's name and its key, as "
                "in {WANDB_API_KEY: wandb/key}"
            )
    for name in sorted({*kube.environment} & {*kube.secrets}):
        yield f"cluster.kuberay.environment.{name} is in cluster.kuberay.secrets, too; keep one of them"
