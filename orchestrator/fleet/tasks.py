"""A function over many things, as Ray tasks: for preparing data."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from orchestrator.config import ClusterConfig
from orchestrator.fleet.cluster import RayCluster
from orchestrator.fleet.raylib import import_ray

T = TypeVar("T")
R = TypeVar("R")


def map_tasks(
    function: Callable[[T], R], items: Sequence[T], config: ClusterConfig, in_flight_per_cpu: int = 2
) -> Iterator[R]:
    """`function` over `items` as Ray tasks of one CPU each, results as they complete. Errors are raised here."""
    with RayCluster(config, min_cpus=1) as cluster:
        ray = import_ray()
        task = ray.remote(function).options(num_cpus=1, max_retries=3)
        limit = max(1, sum(node.cpus for node in cluster.nodes())) * in_flight_per_cpu
        waiting = list(reversed(items))
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < limit:
                running.append(task.remote(waiting.pop()))
            done, running = ray.wait(running, num_returns=1)
            try:
                yield ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from error
