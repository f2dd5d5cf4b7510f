"""What SLURM still says of a job that slurmctld has forgotten: sacct over the site's file of completed jobs."""

import json
import sys

import pytest
from cluster.jobs import sbatch, wait_for

from launch.virtual.cluster import VirtualCluster

pytestmark = pytest.mark.cluster
ASK = """
import json, sys
from dataclasses import asdict
from launch.slurm import commands
views = [commands.accounted(int(job)) for job in sys.argv[1:]]
print(json.dumps([view and asdict(view) for view in views]))
"""
RESTARTING = '[ -n "$SLURM_RESTART_COUNT" ] || { scontrol requeue $SLURM_JOB_ID; sleep infinity; }'


def test_ends_and_restarts_are_known_without_slurmdbd(slurm: VirtualCluster) -> None:
    failed = sbatch(slurm, script="exit 3")
    held = sbatch(slurm, "--hold", script="true")
    slurm.run(slurm.head, "scancel", held)
    again = sbatch(slurm, "--nodes=2", "--requeue", script=RESTARTING)
    ended = [wait_for(slurm, job) for job in (failed, held, again)]
    done = slurm.run(slurm.head, sys.executable, "-c", ASK, failed, held, again, "999999")
    *views, unknown = json.loads(done.stdout)
    assert unknown is None
    assert [(view["state"], view["exit_code"], str(view["restarts"]), view["nodes"]) for view in views] == [
        ("FAILED", "3:0", "0", ended[0]["NodeList"]),
        ("CANCELLED", "0:0", "0", None),
        ("COMPLETED", "0:0", "1", ended[2]["NodeList"]),
    ]
