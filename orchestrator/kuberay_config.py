"""`cluster.kuberay`: the RayJob that `phalanx submit` makes for KubeRay. Plan half."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class KubeRayConfig:
    """What `phalanx submit` asks KubeRay (1.5.1 or newer) for. Null leaves a field out: the site's default counts."""

    namespace: str | None = None
    image: str | None = None
    """Container image of all pods; Phalanx is installed in it."""
    image_pull_secrets: list[str] = field(default_factory=list)
    python: str = "python3"
    """The interpreter in the image that has Phalanx."""
    config_dir: str | None = None
    """Where the folder of --config-dir is in the pods: in the image, or on a claim."""
    claims: dict[str, Any] = field(default_factory=dict)
    """Volume claims and where every pod mounts them, as in {shared: /shared}; run folders and checkpoints must lie
    there, and all nodes must be able to write to it (ReadWriteMany)."""
    secrets: dict[str, Any] = field(default_factory=dict)
    """Variables for everything in the job, from Kubernetes secrets: {WANDB_API_KEY: wandb/key} takes `key` of the
    secret `wandb`."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Variables for everything in the job; not for secrets: they are written into the manifest."""
    spare_nodes: int = 0
    """Worker pods beyond what the workers need: one takes the place of a node that fails."""
    cpus_per_node: int | None = None
    """Of a worker's pod; null: cluster.workers_per_node * cluster.cpus_per_worker."""
    gpus_per_node: int | None = None
    """null: cluster.workers_per_node with GPUs, none on CPUs."""
    gpu_resource: str = "nvidia.com/gpu"
    memory_per_node: str | None = None
    """Of a worker's pod, as in 200Gi; the snapshots in /dev/shm count, too. null: no request and no limit."""
    head_cpus: int = 2
    """Of the head's pod, which runs Ray's own services and the driver, and no worker."""
    head_memory: str = "8Gi"
    node_selector: dict[str, Any] = field(default_factory=dict)
    """Labels of the nodes that worker pods may use."""
    tolerations: dict[str, Any] = field(default_factory=dict)
    """Taints that worker pods tolerate: {nvidia.com/gpu: null, dedicated: training}; null: whatever its value."""
    labels: dict[str, Any] = field(default_factory=dict)
    """Of the RayJob, as in {kueue.x-k8s.io/queue-name: training}."""
    service_account: str | None = None
    backoff_limit: int = 3
    """How often KubeRay makes a new Ray cluster where the run left early or failed; it then resumes."""
    ttl_s: int = 300
    """How long the pods stay after the end, to look at."""
    termination_grace_s: int = 300
    """From Kubernetes' notice to the end of a pod (an eviction, a spot node, `kubectl delete`): time for a
    checkpoint."""
