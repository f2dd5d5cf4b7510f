"""A network partition in a real run: the side without the driver stops by itself, and a spare node steps in."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from cluster.submitting import SubmittedRun, held, learned, left_on, local_rows, prepare_data, wait_until

from launch.virtual.cluster import VirtualCluster
from orchestrator.observe.metrics import read_rows

pytestmark = pytest.mark.cluster
COURSE = ["train.steps=60", "optim.schedule_steps=60"]
WORDS = [*COURSE, "cluster.slurm.spare_nodes=1", "cluster.cpus_per_worker=2", "fault.lease_timeout_s=6"]
WORDS += ["fault.hang_constant_s=600"]  # a rank is held while the test looks around


def forked_on(site: VirtualCluster, node: str) -> int:
    """How many processes of a zygote are on a node: itself, and its ranks."""
    listed = site.run(node, "ps", "-eo", "args").stdout
    return sum("orchestrator.agent.zygote" in line for line in listed.splitlines())


def hosts_of(run: SubmittedRun, attempt: int) -> set[str]:
    logs = [run.folder.rank_log(attempt, rank).read_text() for rank in (0, 1)]
    return {found[1] for log in logs if (found := re.search(rf" on (\S+): attempt {attempt}, pid", log))}


def test_a_slow_node_is_kept_and_the_cut_side_stops_and_a_spare_node_takes_its_place(
    new_cluster: Callable[..., VirtualCluster], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = new_cluster(nodes=3, cpus=2)
    data = prepare_data(site)
    run = SubmittedRun(site, data, "cut", *WORDS)
    run.submit()
    run.wait_for_step(10)
    with held(site, run.folder, 1, 0):
        before = hosts_of(run, 1)
        (cut,) = sorted(before - {run.fields()["BatchHost"]})
        assert forked_on(site, cut) >= 2, "its zygote and its rank, and perhaps one that stands by"
        slowed = max(run.rows())
        site.slow(cut, delay_ms=20, loss=0.01)
    run.wait_for_step(slowed + 8)
    site.isolate(cut)
    cut_s = time.time()
    wait_until("the end of the rank behind the partition", lambda: forked_on(site, cut) < 2)
    stopped_s = time.time()
    wait_until("the recovery", lambda: run.events("recovered"))
    ended = run.wait_for_state()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "0"), run.output()

    (lost,), (recovered,) = run.events("node_lost"), run.events("recovered")  # for the cut, not for the slowness
    assert lost["node"] == cut
    assert recovered["steps_lost"] <= 7
    assert hosts_of(run, 2) == {*site.nodes} - {cut}
    assert {event["attempt"] for event in run.events("checkpoint_committed") if event["t"] > lost["t"]} == {2}
    assert learned(run.rows()) == learned(local_rows(data, tmp_path, *COURSE))
    assert [left_on(site, node) for node in site.nodes if node != cut] == [[], []]
    with capsys.disabled():
        print(
            f"\nafter the cut: its rank stopped {stopped_s - cut_s:.1f} s, found lost {lost['t'] - cut_s:.1f} s, "
            f"training on the spare node {recovered['t'] - cut_s:.1f} s\n"
            f"a step took {step_s(run, 2, slowed - 1):.2f} s, behind 20 ms and 1 % loss each way "
            f"{step_s(run, slowed + 2, slowed + 8):.2f} s"
        )


def step_s(run: SubmittedRun, first: int, last: int) -> float:
    """The median of the first attempt's steps."""
    return median(
        row.step_s for row in read_rows(run.folder.metrics) if row.attempt == 1 and first <= row.step <= last
    )
