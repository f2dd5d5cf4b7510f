"""A Ray cluster of one node in a process of its own, for runs that join: prints its address, ends with its stdin.

python shared_ray.py NUM_CPUS FOLDER; the token is in $RAY_AUTH_TOKEN_PATH. FOLDER's path must be short: sockets.
"""

import contextlib
import os
import sys

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_enable_worker_prestart="0",
    RAY_prestart_worker_first_driver="0",
    RAY_worker_niceness="0",
)

import ray


def main(num_cpus: int, folder: str) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        context = ray.init(
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=80_000_000,
            _temp_dir=folder,
        )
    try:
        print(context.address_info["address"], flush=True)
        sys.stdin.read()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
