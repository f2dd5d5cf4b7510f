"""Jobs that lose nodes, and jobs that are preempted again and again."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster.jobs import ENDED
from cluster.submitting import SLOW, SubmittedRun, learned, left_on, local_rows, phalanx, prepare_data, wait_until

from launch.slurm.record import newest_submission
from launch.virtual.cluster import VirtualCluster
from orchestrator.observe.metrics import read_rows

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


def test_nothing_is_left_of_a_job_whose_program_is_killed(new_cluster: NewCluster) -> None:
    """Without cgroups SLURM no longer knows that the driver was the job's."""
    site = new_cluster(nodes=2, has_cgroups=False)
    run = SubmittedRun(site, prepare_data(site), "beheaded", *SLOW)
    run.submit()
    run.wait_for_step(3)
    host = run.fields()["BatchHost"]
    listed = site.run(host, "ps", "-eww", "-o", "pid,args").stdout.splitlines()
    (program,) = [line.split()[0] for line in listed if "launch.job.batch" in line]
    site.run(host, "kill", "-KILL", program)
    ended = run.wait_for_state()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "0:9"), run.output()
    assert [left_on(site, node) for node in site.nodes] == [[], []]


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
    """At random moments, of which many are in a save: every third step makes a checkpoint. Every fifth is SLURM's
    own, for a job of a higher partition; the others are notices as before a time limit.
    CI has three: test_submit.py."""
    site = new_cluster(nodes=2)
    site.run(site.head, "scontrol", "update", "PartitionName=main", "GraceTime=5")
    data = prepare_data(site)
    words = ["train.steps=2000", "optim.schedule_steps=2000", "checkpoint.every_steps=3", "checkpoint.keep_last=2"]
    reference = local_rows(data, tmp_path, *words)
    run = SubmittedRun(site, data, "fifty", *words, "cluster.slurm.time_limit_min=600")
    dice = random.Random(50)
    run.submit()
    for restart in range(1, 51):
        done = max(run.rows(), default=0)
        run.wait_for_step(done + dice.randrange(1, 9), attempt=restart)
        if restart % 5 == 0:
            run.preempt()
        else:
            run.notify()
        wait_until("a restart", lambda restart=restart: run.fields()["Restarts"] == str(restart))
    run.wait_for_step(max(run.rows()) + 1, attempt=51)
    assert phalanx(site, "cancel", str(run.folder.path)).returncode == 0
    ended = run.wait_for_state()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "75:0"), run.output()[-3000:]
    rows = learned(run.rows())
    assert rows == learned(reference)[: len(rows)]
    starts = run.events("attempt_started")
    assert [event["attempt"] for event in starts] == [*range(1, 52)]
    events = run.events()
    for start in starts[1:]:  # from the last boundary before each: no step is done again
        before = events[: events.index(start)]
        saved = [event["step"] for event in before if event["event"] == "checkpoint_committed"]
        last_row = max(row.step for row in read_rows(run.folder.metrics) if row.attempt < start["attempt"])
        assert start["resume_step"] == max(saved) == last_row
    committing = [event["attempt"] for event in run.events("checkpoint_committed")]
    assert committing == sorted(committing)
    assert run.events("run_failed", "rank_died") == []
    assert [left_on(site, node) for node in site.nodes] == [[], []]
    notices = [event["t"] for event in run.events("preemption_notice")]
    spans = save_spans(events)
    in_a_save = sum(any(begun <= at <= ended for begun, ended in spans) for at in notices)
    print(f"{len(notices)} notices, {in_a_save} in a save; {len(committing)} checkpoints")
    assert in_a_save > 0


def save_spans(events: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """From the step that a checkpoint is of until it was committed, in unix seconds."""
    begun: dict[tuple[int, int], float] = {}
    spans = []
    for event in events:
        key = event["attempt"], event["step"]
        if event["event"] == "checkpoint_started":
            begun[key] = event["t"]
        elif event["event"] == "checkpoint_committed" and key in begun:
            spans.append((begun[key], event["t"]))
    return spans


@pytest.mark.soak
def test_real_time_limits_to_the_end(new_cluster: NewCluster, tmp_path: Path) -> None:
    """SLURM's own clock, three nodes: a job of two minutes sends its notice some 40 s before, again and again."""
    site = new_cluster(nodes=3)
    data = prepare_data(site)
    words = ["cluster.num_workers=3", "train.global_batch_size=12", "checkpoint.every_steps=100"]
    words += ["train.steps=1500", "optim.schedule_steps=1500"]
    reference = local_rows(data, tmp_path, *words)
    limits = ["cluster.slurm.time_limit_min=2", "cluster.slurm.notice_s=30", "tracking.wandb.mode=offline"]
    run = SubmittedRun(site, data, "minutes", *words, *limits)
    run.submit()
    ended, restarts = run.fields(), 0
    while ended["JobState"] not in ENDED:

        def look(restarts: int = restarts) -> dict[str, str] | None:
            fields = run.fields()
            return fields if fields["JobState"] in ENDED or int(fields["Restarts"]) > restarts else None

        ended = wait_until("a restart or the end", look)
        restarts = int(ended["Restarts"])
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), run.output()[-3000:]
    assert restarts >= 1
    assert re.findall(r"caught SIGUSR1, \d+ s left, saved step \d+ in \d+ s, requeued \(restart \d\)", run.output())
    assert learned(run.rows()) == learned(reference)
    assert [path.name for path in (site.shared / "runs").iterdir()] == ["minutes"]
    assert len(run.wandb_ids()) == 1
    print(f"{restarts} restarts at time limits")


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
