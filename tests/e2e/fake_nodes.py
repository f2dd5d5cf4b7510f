"""A Ray cluster of several one-CPU nodes on this host, each with a name and a rack of its own, for runs that join.

It prints its address and ends with its stdin.

Each line of its stdin adds a node in such a rack, and is answered by a line.

python fake_nodes.py NUM_NODES; the token is in $RAY_AUTH_TOKEN_PATH, everything Ray writes in $RAY_TMPDIR, whose path
must be short: sockets.
"""

import contextlib
import os
import sys
from typing import Any

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_enable_worker_prestart="0",
    RAY_prestart_worker_first_driver="0",
    RAY_worker_niceness="0",
)

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


def named(number: int) -> dict[str, Any]:
    return {**NODE, "node_name": f"node-{number}", "labels": {"rack": f"rack-{number}"}}


def main(num_nodes: int) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        cluster = Cluster(initialize_head=True, head_node_args={**named(0), "include_dashboard": False})
    try:
        with contextlib.redirect_stdout(sys.stderr):
            for number in range(1, num_nodes):
                cluster.add_node(**named(number))
        print(cluster.address, flush=True)
        for number, _ in enumerate(sys.stdin, num_nodes):
            with contextlib.redirect_stdout(sys.stderr):
                cluster.add_node(**named(number))
            print("added", flush=True)
    finally:
        with contextlib.redirect_stdout(sys.stderr):
            cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
