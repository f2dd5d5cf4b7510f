"""What is around a Ray cluster and known without Ray: this machine, the address, the token, the temporary folder."""

import os
import socket
from pathlib import Path

import psutil

from orchestrator.config import ClusterConfig
from orchestrator.scratch import locked_folder, sweep_folders
from orchestrator.spec import NodeFacts

WORKERS_PER_CORE = 4
"""How far a Ray that we start here lets CPU workers share cores: slow, but right, and good for trying things."""
KNOCK_TIMEOUT_S = 10.0
TEMP_PREFIX = "phx-ray-"
TOKEN_FILE = Path("~/.ray/auth_token")
RAY_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_niceness": "0",  # else ranks inherit 15 and lose to everything else
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment of a driver and of any Ray that is started by us."""
LEAN_RAY_SETTINGS = {
    "RAY_event_stats": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_local_fs_monitor_interval_ms": "10000",
    "RAY_kill_idle_workers_interval_ms": "2000",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
    "RAY_object_manager_timer_freq_ms": "1000",
}
"""Environment of a Ray that has one run and one node: with these its idle processes, which take their time from ranks
that may leave no core free, need half of the CPU."""
RAY_SETTINGS = {
    **RAY_DEFAULTS,
    # A scheduler limits memory by itself; Ray would look at the whole machine, and at other people's jobs on it.
    "RAY_memory_monitor_refresh_ms": "0",
    # A silent node is given up after about 15 s; Ray's own settings take a minute.
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
    # And a node that the head has fallen silent to ends its Ray by itself; else it would wait for many minutes.
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
}
"""Environment of a Ray that we start on the nodes of a cluster."""


def here(min_cpus: int) -> NodeFacts:
    """What a Ray started on this machine would offer: known before it is started."""
    cores = os.cpu_count() or 1
    return NodeFacts(
        name=socket.gethostname(),
        cpus=max(cores, min(min_cpus, cores * WORKERS_PER_CORE)),
        gpus=len(list(Path("/dev").glob("nvidia[0-9]*"))),
    )


def interface_of(address: str) -> str | None:
    """The network interface that holds `address`."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return name
    return None


def has_gpu() -> bool:
    """Whether this process was given a GPU."""
    return bool(os.environ.get("CUDA_VISIBLE_DEVICES")) and Path("/dev/nvidiactl").exists()


def is_joining(config: ClusterConfig) -> bool:
    return config.address is not None or "RAY_ADDRESS" in os.environ


def in_ray_job() -> bool:
    """Whether `ray job submit`, or KubeRay, started this process or its parents."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def hand_on_token() -> None:
    """Ray turns authentication on by itself where ~/.ray/auth_token exists, but only on the head: say so here too."""
    if "RAY_AUTH_MODE" not in os.environ and TOKEN_FILE.expanduser().exists():
        os.environ["RAY_AUTH_MODE"] = "token"


def knock(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=KNOCK_TIMEOUT_S).close()


def locked_temp_dir() -> tuple[str, int]:
    """A new folder for Ray and the descriptor that locks it."""
    return locked_folder(TEMP_PREFIX, "/tmp")  # sockets: short


def remove_stale_temp_dirs() -> None:
    """A driver killed with SIGKILL leaves its Ray's folder behind; the next one sweeps it up."""
    sweep_folders(TEMP_PREFIX, "/tmp")
