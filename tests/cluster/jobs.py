"""Jobs on a virtual cluster, as a person would handle them: sbatch, scontrol."""

import re
import time

from launch.virtual.cluster import VirtualCluster

ENDED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
}
_POLL_S = 0.1


def sbatch(cluster: VirtualCluster, *options: str, script: str) -> str:
    """Submit bash lines on the head; returns the job's id. What it prints is in shared/ID.out."""
    text = f"#!/bin/bash\n{script}\n"
    done = cluster.run(cluster.head, "sbatch", "--parsable", "--output=%j.out", *options, stdin=text)
    return done.stdout.strip()


def job_fields(cluster: VirtualCluster, job: str) -> dict[str, str]:
    """What `scontrol show job` says: JobState, ExitCode, Restarts, NodeList, BatchHost, Reason..."""
    shown = cluster.run(cluster.head, "scontrol", "show", "job", "-o", job).stdout
    return dict(re.findall(r"(\S+?)=(\S*)", shown))


def wait_for(cluster: VirtualCluster, job: str, *states: str) -> dict[str, str]:
    """Wait until the job is in one of `states` (its end); returns its fields then."""
    wanted = set(states) or ENDED
    while (fields := job_fields(cluster, job))["JobState"] not in wanted:
        assert fields["JobState"] not in ENDED, f"job {job} ended instead: {fields}"
        time.sleep(_POLL_S)
    return fields


def output(cluster: VirtualCluster, job: str) -> str:
    return (cluster.shared / f"{job}.out").read_text()
