"""A network partition in a real run: the side without the driver stops by itself."""

from collections.abc import Callable

import pytest
from cluster.submitting import SubmittedRun, prepare_data, wait_until

from launch.virtual.cluster import VirtualCluster

pytestmark = pytest.mark.cluster
WORDS = [
    "cluster.slurm.spare_nodes=1",
    "cluster.cpus_per_worker=2",
    "train.steps=2000",
    "optim.schedule_steps=40",
    "fault.lease_timeout_s=6",
]


def forked_on(site: VirtualCluster, node: str) -> int:
    """How many processes of a zygote are on a node: itself, and its ranks."""
    listed = site.run(node, "ps", "-eo", "args").stdout
    return sum("orchestrator.agent.zygote" in line for line in listed.splitlines())


def test_the_cut_side_stops_and_counts_as_lost_in_a_lease(new_cluster: Callable[..., VirtualCluster]) -> None:
    site = new_cluster(nodes=3, cpus=2)
    run = SubmittedRun(site, prepare_data(site), "cut", *WORDS)
    run.submit()
    run.wait_for_step(10)
    cut = site.nodes[1]
    assert forked_on(site, cut) == 2
    site.isolate(cut)
    wait_until("the end of the rank behind the partition", lambda: forked_on(site, cut) < 2)
    wait_until("the loss", lambda: run.events("node_lost"))
