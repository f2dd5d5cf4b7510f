"""Jobs that lose nodes, and jobs that are preempted again and again."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster.submitting import SubmittedRun, learned, left_on, local_rows, prepare_data, wait_until

from launch.slurm.record import newest_submission
from launch.virtual.cluster import VirtualCluster

pytestmark = pytest.mark.cluster
NewCluster = Callable[..., VirtualCluster]
WITH_SPARE = ["cluster.slurm.spare_nodes=1", "cluster.cpus_per_worker=2", "cluster.replace_timeout_s=300"]


def test_a_spare_node_takes_the_place_of_one_that_dies(new_cluster: NewCluster, tmp_path: Path) -> None:
    site = new_cluster(nodes=3, cpus=2)
    data = prepare_data(site)
    run = SubmittedRun(site, data, "lost", *WITH_SPARE, "train.steps=300", "optim.schedule_steps=40")
    run.submit()
    run.wait_for_step(10)
    logs = [run.folder.rank_log(1, rank).read_text() for rank in (0, 1)]
    hosts = {found[1] for log in logs if (found := re.search(r" on (\S+): attempt 1, pid", log))}
    (devices,) = re.findall(r"^devices +2 x cpu on (.*)$", run.output(), re.MULTILINE)
    assert set(devices.split(", ")) == {f"{host} (1 worker)" for host in hosts}
    (lost,) = sorted(hosts - {run.fields()["BatchHost"]})[:1]
    site.crash(lost)
    wait_until("the loss", lambda: run.events("node_lost"))
    wait_until("the recovery", lambda: run.events("recovered"))
    assert run.events("recovered")[0]["steps_lost"] <= 7
    ended = run.wait_for_state()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "0"), run.output()
    assert {row.world_size for row in run.rows().values()} == {2}
    assert [left_on(site, node) for node in site.nodes if node != lost] == [[], []]


@pytest.mark.soak
def test_the_first_node_dies_and_the_job_goes_on_elsewhere(new_cluster: NewCluster, tmp_path: Path) -> None:
    """With --no-kill SLURM would leave the job RUNNING without its batch host."""
    site = new_cluster(nodes=4, cpus=2)
    data = prepare_data(site)
    run = SubmittedRun(site, data, "headless", *WITH_SPARE, "train.steps=4000", "optim.schedule_steps=40")
    run.submit()
    run.wait_for_step(10)
    site.crash(run.fields()["BatchHost"])
    wait_until("the requeue", lambda: run.fields()["Restarts"] == "1")
    site.boot(site.nodes[0])
    ended = run.wait_for_state()
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), run.output()
    assert len({event["attempt"] for event in run.events("attempt_started")}) == 2


@pytest.mark.soak
def test_fifty_preemptions_change_nothing(new_cluster: NewCluster, tmp_path: Path) -> None:
    """At random moments, of which many are in a save: every third step makes a checkpoint."""
    site = new_cluster(nodes=2)
    data = prepare_data(site)
    words = ["train.steps=600", "optim.schedule_steps=600", "checkpoint.every_steps=3", "checkpoint.keep_last=0"]
    reference = local_rows(data, tmp_path, *words)
    run = SubmittedRun(site, data, "fifty", *words, "cluster.slurm.time_limit_min=600")
    dice = random.Random(50)
    run.submit()
    for restart in range(1, 51):
        done = max(run.rows(), default=0)
        run.wait_for_step(done + dice.randrange(1, 9), attempt=restart)
        site.run(site.head, "scancel", "--batch", "--signal=USR1", run.job)
        wait_until("a restart", lambda restart=restart: run.fields()["Restarts"] == str(restart))
    ended = run.wait_for_state()
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), run.output()[-3000:]
    assert learned(run.rows()) == learned(reference)
    saved = [event["step"] for event in run.events("requeued")]
    assert [event["resume_step"] for event in run.events("attempt_started")] == [0, *saved]
    committing = [event["attempt"] for event in run.events("checkpoint_committed")]
    assert committing == sorted(committing)
    assert run.events("run_failed", "rank_died") == []
    assert [left_on(site, node) for node in site.nodes] == [[], []]


@pytest.mark.soak
def test_a_real_time_limit(new_cluster: NewCluster, tmp_path: Path) -> None:
    """SLURM's own clock: a job of one minute sends its notice some 40 s early, often enough to finish the run."""
    site = new_cluster(nodes=1)
    data = prepare_data(site)
    words = ["cluster.slurm.time_limit_min=2", "cluster.slurm.notice_s=30", "cluster.workers_per_node=2"]
    run = SubmittedRun(site, data, "minutes", *words, "train.steps=20000", "optim.schedule_steps=40")
    run.submit()
    wait_until("a restart", lambda: run.fields()["Restarts"] == "1")
    assert "caught SIGUSR1, " in run.output()
    assert run.fields()["JobState"] != "TIMEOUT"
    run.wait_for_step(run.events("requeued")[0]["step"] + 1, attempt=2)


@pytest.mark.soak
def test_a_chain_of_jobs_where_requeueing_is_forbidden(new_cluster: NewCluster, tmp_path: Path) -> None:
    site = new_cluster(nodes=1)
    data = prepare_data(site)
    reference = local_rows(data, tmp_path)
    run = SubmittedRun(site, data, "chain", "cluster.slurm.requeue=chain", "cluster.workers_per_node=2")
    first = run.submit()
    run.wait_for_step(5)
    site.run(site.head, "scancel", "--batch", "--signal=USR1", first)
    ended = run.wait_for_state()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "0"), run.output()
    newest = newest_submission(run.folder)
    assert newest is not None and newest.follows
    assert f"goes on in job {newest.job_id}" in run.output()
    run.job = str(newest.job_id)
    assert run.wait_for_state()["JobState"] == "COMPLETED", run.output()
    assert learned(run.rows()) == learned(reference)
