"""The RayJob (ray.io/v1) of a run, as the dict that becomes YAML. Plan half.

Fields as of KubeRay's API reference; `authOptions` came with 1.5.1. The operator itself adds ports, probes, the
addresses, `ray start` and the token, which it keeps in a secret of its own.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.kuberay.request import PodRequest
from orchestrator.kuberay_config import KubeRayConfig

OBJECT_STORE_BYTES = 80_000_000
"""Ray's smallest: nothing of ours goes through it."""
SHM_BESIDE_SNAPSHOTS_BYTES = 2**30
"""Ray's object store, and the segments of NCCL and gloo."""
KILL_MARGIN_S = 10
"""What is left of a pod's grace when Ray gives up waiting for the run to leave."""
SHM = "shm"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFacts:
    run_id: str
    words: Sequence[str]
    """`phalanx train ...`, as the head's pod runs it."""
    request: PodRequest
    shm_bytes: int
    """Of a worker's pod."""
    ray_version: str
    ray_settings: Mapping[str, str]
    """Environment of a Ray that is ours."""


def rayjob(kube: KubeRayConfig, job: JobFacts) -> dict[str, Any]:
    """The manifest: every value plain JSON, nothing left to fill in."""
    metadata: dict[str, Any] = {"name": job.run_id}
    if kube.namespace is not None:
        metadata["namespace"] = kube.namespace
    if kube.labels:
        metadata["labels"] = {name: str(value) for name, value in kube.labels.items()}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            # In K8sJobMode the words would pass through a second shell.
            "submissionMode": "HTTPMode",
            "entrypoint": shlex.join(job.words),
            "backoffLimit": kube.backoff_limit,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": kube.ttl_s,
            "rayClusterSpec": {
                "rayVersion": job.ray_version,
                "authOptions": {"mode": "token"},
                "headGroupSpec": _head(kube, job),
                "workerGroupSpecs": [_workers(kube, job)],
            },
        },
    }


def _head(kube: KubeRayConfig, job: JobFacts) -> dict[str, Any]:
    """Ray's own services and the driver; no CPU for workers, so that none is lost with it."""
    sizes = {"cpu": str(kube.head_cpus), "memory": kube.head_memory}
    return {
        "rayStartParams": _start_params(cpus=0, gpus=0) | {"dashboard-host": "0.0.0.0"},
        "template": _pod(kube, job, container="ray-head", sizes=sizes, shm_bytes=SHM_BESIDE_SNAPSHOTS_BYTES),
    }


def _workers(kube: KubeRayConfig, job: JobFacts) -> dict[str, Any]:
    request = job.request
    sizes = {"cpu": str(request.cpus)}
    if kube.memory_per_node is not None:
        sizes["memory"] = kube.memory_per_node
    if request.gpus:
        sizes[kube.gpu_resource] = str(request.gpus)
    template = _pod(kube, job, container="ray-worker", sizes=sizes, shm_bytes=job.shm_bytes)
    if kube.node_selector:
        template["spec"]["nodeSelector"] = {name: str(value) for name, value in kube.node_selector.items()}
    if kube.tolerations:
        template["spec"]["tolerations"] = [
            {"key": key, "operator": "Exists"}
            if value is None
            else {"key": key, "operator": "Equal", "value": str(value)}
            for key, value in kube.tolerations.items()
        ]
    return {
        "groupName": "workers",
        "replicas": request.pods,
        "minReplicas": request.pods,
        "maxReplicas": request.pods,
        "rayStartParams": _start_params(cpus=request.cpus, gpus=request.gpus),
        "template": template,
    }


def _start_params(*, cpus: int, gpus: int) -> dict[str, str]:
    return {"num-cpus": str(cpus), "num-gpus": str(gpus), "object-store-memory": str(OBJECT_STORE_BYTES)}


def _pod(
    kube: KubeRayConfig, job: JobFacts, *, container: str, sizes: Mapping[str, str], shm_bytes: int
) -> dict[str, Any]:
    """A pod template. Requests are limits: a pod is given what it asks for, and is the last to be evicted."""
    shm_mib = -(-shm_bytes // 2**20)
    mounts = [{"name": SHM, "mountPath": "/dev/shm"}]
    volumes: list[dict[str, Any]] = [{"name": SHM, "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_mib}Mi"}}]
    for number, (claim, path) in enumerate(kube.claims.items()):
        mounts.append({"name": f"claim-{number}", "mountPath": path})
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
    spec: dict[str, Any] = {
        "terminationGracePeriodSeconds": kube.termination_grace_s,
        "containers": [
            {
                "name": container,
                "image": kube.image,
                "resources": {"requests": dict(sizes), "limits": dict(sizes)},
                "env": _environment(kube, job),
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if kube.service_account is not None:
        spec["serviceAccountName"] = kube.service_account
    if kube.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in kube.image_pull_secrets]
    return {"spec": spec}


def _environment(kube: KubeRayConfig, job: JobFacts) -> list[dict[str, Any]]:
    """Ray drains a node whose pod is told to end; the driver hears of it, saves and leaves, then the pod ends."""
    drain_s = kube.termination_grace_s - KILL_MARGIN_S
    own = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": drain_s, "RAY_JOB_STOP_WAIT_TIME_S": drain_s}
    plain = {**job.ray_settings, **own, **kube.environment}
    found: list[dict[str, Any]] = [{"name": name, "value": _text(value)} for name, value in plain.items()]
    for name, place in kube.secrets.items():
        secret, _, key = str(place).partition("/")
        found.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return found


def _text(value: object) -> str:
    """As text that Kubernetes takes as it stands: it would put variables in place of `$(NAME)`."""
    return (str(value).lower() if isinstance(value, bool) else str(value)).replace("$(", "$$(")
