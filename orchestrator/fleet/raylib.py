"""Ray, imported as we want it. The only file that imports ray."""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.fleet.surroundings import LEAN_RAY_SETTINGS, RAY_DEFAULTS


def import_ray() -> Any:
    for name, value in RAY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.exceptions
    import ray.util
    import ray.util.scheduling_strategies

    return ray


def draining_nodes() -> dict[str, float]:
    """Id of each node that Ray was told to drain -> its deadline in unix seconds, 0 where there is none."""
    from ray._private.state import state  # Ray has no public word for it

    return {node: deadline_ms / 1000 for node, deadline_ms in state.get_draining_nodes().items()}


def node_name(row: Mapping[str, Any]) -> str:
    """What people call a node (a row of `ray.nodes()`): the name that it was given, else its host's."""
    name = str(row["NodeName"])
    return str(row["NodeManagerHostname"]) if name == row["NodeManagerAddress"] else name


def node_names() -> dict[str, str]:
    """Ray's id of each live node -> its name."""
    return {row["NodeID"]: node_name(row) for row in import_ray().nodes() if row["Alive"]}


def available_resources() -> dict[str, dict[str, float]]:
    """Id of each live node -> resource -> what is free of it; this process's node first, the others by name."""
    from ray._private.state import available_resources_per_node

    ray = import_ray()
    here, free = ray.util.get_node_ip_address(), available_resources_per_node()
    rows = [row for row in ray.nodes() if row["Alive"] and row["NodeID"] in free]
    rows.sort(key=lambda row: (row["NodeManagerAddress"] != here, node_name(row)))
    return {row["NodeID"]: free[row["NodeID"]] for row in rows}


def driver_node() -> str:
    """Id of the node that this process has joined from."""
    return str(import_ray().get_runtime_context().get_node_id())


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ray prints notices to stderr while it starts; people see ours instead."""
    import logging

    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def for_one_run() -> Iterator[None]:
    """`ray.init` in here starts a node without what nobody asks anything there: log monitor and autoscaler, whose
    ends take a second; the dashboard's server, which else starts even where no dashboard is wanted; and statistics.
    Its agent listens on any free port: for its usual one it waits four seconds where another Ray has that. Ray has
    words for some of this on its command line, for the rest none.
    """
    from ray._private import parameter
    from ray._private.node import Node

    lean = {"dashboard_agent_listen_port": 0, "include_log_monitor": False, "no_monitor": True}
    as_they_were = parameter.RayParams, Node.start_api_server
    for name, value in LEAN_RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    parameter.RayParams = functools.partial(parameter.RayParams, **lean)  # type: ignore[misc, assignment]
    Node.start_api_server = _start_no_server  # type: ignore[method-assign]
    try:
        yield
    finally:
        parameter.RayParams, Node.start_api_server = as_they_were  # type: ignore[misc, method-assign]


def _start_no_server(node: Any, **_: object) -> None:
    """The node's agent asks every second where the server is, until it is told."""
    from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD

    node.get_gcs_client().internal_kv_put(DASHBOARD_ADDRESS.encode(), b"127.0.0.1:0", True, KV_NAMESPACE_DASHBOARD)
