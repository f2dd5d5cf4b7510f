"""What a cluster's profile asks of each machine, whoever schedules it: what can't be. Plan half."""

from collections.abc import Iterator

from orchestrator.config import ClusterConfig


def machine_size_problems(
    cluster: ClusterConfig,
    device: str,
    *,
    scheduler: str,
    machines: str,
    gpus_per_node: int | None,
    cpus_per_node: int | None,
) -> Iterator[str]:
    """`scheduler` names the keys (`cluster.slurm`), `machines` what it gives (`nodes`, `pods`)."""
    if cluster.workers_per_node is None and cluster.num_workers > 1:
        yield (
            f"cluster.workers_per_node is not set, so the {machines} for cluster.num_workers={cluster.num_workers} "
            "are not known; use cluster.workers_per_node=8 where a node has eight GPUs"
        )
    per_node = cluster.workers_per_node or cluster.num_workers
    if device == "cuda" and gpus_per_node is not None and gpus_per_node < per_node:
        yield (
            f"cluster.{scheduler}.gpus_per_node={gpus_per_node} is fewer than cluster.workers_per_node={per_node}, "
            "one GPU each; leave it out, or lower cluster.workers_per_node"
        )
    needed_cpus = per_node * cluster.cpus_per_worker
    if cpus_per_node is not None and cpus_per_node < needed_cpus:
        yield (
            f"cluster.{scheduler}.cpus_per_node={cpus_per_node} is fewer than workers_per_node * cpus_per_worker = "
            f"{per_node} * {cluster.cpus_per_worker} = {needed_cpus}; leave it out, or ask for {needed_cpus}"
        )
