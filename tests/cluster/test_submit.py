"""Runs as SLURM jobs on real daemons: across nodes, through signals, requeues and ends, beside each other."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from cluster.jobs import job_fields
from cluster.submitting import (
    LATER,
    SLOW,
    SubmittedRun,
    killed_by_sbatch,
    learned,
    left_on,
    local_rows,
    phalanx,
    prepare_data,
    wait_until,
)

from launch.slurm.record import submissions
from launch.virtual.cluster import VirtualCluster
from orchestrator.observe.metrics import StepRow

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def site(bring_up: Callable[..., AbstractContextManager[VirtualCluster]]) -> Iterator[VirtualCluster]:
    """Two nodes with room for two jobs each."""
    with bring_up(nodes=2, gpus=2, slurm_lines=("KillWait=60",)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def data(site: VirtualCluster) -> Path:
    return prepare_data(site)


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, StepRow]:
    return local_rows(data, tmp_path_factory.mktemp("local"))


def ray_token(site: VirtualCluster, node: str) -> str:
    """What the one Ray on a node asks of everybody, where its owner alone can read it."""
    found = site.run(node, "sh", "-c", "stat -c %a /tmp/phx-ray-*/token; cat /tmp/phx-ray-*/token").stdout.split()
    assert (found[0], len(found), len(found[1])) == ("600", 2, 64)
    return found[1]


def command_lines(site: VirtualCluster, node: str) -> str:
    """Of every process there, whole, each after its number."""
    return site.run(node, "ps", "-eww", "-o", "pid,args").stdout


LONG = ["train.steps=600", "optim.schedule_steps=600"]
"""A notice is heard some tens of steps after it was sent: three of them come long before the end."""


class TestLife:
    def test_three_preemptions_and_the_run_is_the_same(
        self, site: VirtualCluster, data: Path, tmp_path: Path
    ) -> None:
        """SIGUSR1 as `--signal` sends it, SLURM's own preemption for another job, and SIGUSR1 again; two nodes."""
        reference = local_rows(data, tmp_path, *LONG)
        run = SubmittedRun(site, data, "limit", *LONG, "checkpoint.every_steps=0", "tracking.wandb.mode=offline")
        run.submit()
        other = ""
        for restart, step in ((1, 3), (2, 12), (3, 25)):
            run.wait_for_step(step, attempt=restart)
            if restart == 2:
                other = run.preempt()
            else:
                run.notify()
            wait_until("a restart", lambda restart=restart: run.fields()["Restarts"] == str(restart))
        ended = run.wait_for_state()
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), run.output()
        assert job_fields(site, other)["JobState"] == "COMPLETED"
        assert learned(run.rows()) == learned(reference)
        assert [path.name for path in (site.shared / "runs").iterdir() if path.name == "limit"] == ["limit"]
        assert len(run.wandb_ids()) == 1
        requeued = run.events("requeued")
        assert [event["signal"] for event in requeued] == ["SIGUSR1"] * 2
        starts = [event["resume_step"] for event in run.events("attempt_started")]
        saved = [event["step"] for event in run.events("checkpoint_committed")]
        assert starts == [0, *saved[:3]]
        assert [event["step"] for event in requeued] == [saved[0], saved[2]]
        assert run.events("rank_died", "run_failed") == []
        assert "waiting for SLURM to take the nodes and requeue the job" in run.output()
        for restart, event in zip((1, 3), requeued, strict=True):
            assert f"saved step {event['step']} in " in run.output()
            assert f"requeued (restart {restart})" in run.output()
        assert f"SLURM       job {run.job} COMPLETED" in phalanx(site, "status", str(run.folder.path)).stdout
        assert [left_on(site, node) for node in site.nodes] == [[], []]

    def test_cancel_saves_and_never_requeues(self, site: VirtualCluster, data: Path) -> None:
        """`scancel` gives SLURM's KillWait; `phalanx cancel` as long as it takes. Nobody is told Ray's token."""
        run = SubmittedRun(site, data, "cancelled", *SLOW, "checkpoint.every_steps=0")
        run.submit()
        run.wait_for_step(3)
        (token,) = {ray_token(site, node) for node in site.nodes}
        for node in (site.head, *site.nodes):
            assert token not in command_lines(site, node)
        assert "launch.job.batch" in command_lines(site, run.fields()["BatchHost"])
        site.run(site.head, "scancel", run.job)
        assert run.wait_for_state()["JobState"] == "CANCELLED"
        wait_until("its last words", lambda: "caught SIGTERM, saved step" in run.output())
        assert "next        phalanx submit cluster=slurm " in run.output()
        saved = run.events("checkpoint_committed")[-1]["step"]
        wait_until("clean nodes", lambda: not any(left_on(site, node) for node in site.nodes))
        written = [path for path in run.folder.path.rglob("*") if path.is_file()]
        assert run.folder.job_output(run.job) in written
        assert [path for path in written if token.encode() in path.read_bytes()] == []
        words = (sys.executable, "-m", "launch.cli", "submit", *run.words)
        at_once = [site.start(site.head, *words, stdout=subprocess.PIPE) for _ in range(2)]
        said = {typed.communicate()[0]: typed.returncode for typed in at_once}
        assert sorted(said.values()) == [0, 2], said
        run.job = re.findall(r"^Submitted batch job (\d+)$", "".join(said), re.MULTILINE)[0]
        assert [submission.slurm_id for submission in submissions(run.folder)][1:] == [run.job]
        assert phalanx(site, "submit", *run.words).returncode == 2
        run.wait_for_step(saved + 1, attempt=2)
        assert f"running, job {run.job}" in phalanx(site, "status", "--root", f"{site.shared}/runs").stdout
        assert phalanx(site, "cancel", str(run.folder.path)).returncode == 0
        ended = run.wait_for_state()
        assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "0")
        assert [event["resume_step"] for event in run.events("attempt_started")] == [0, saved]
        refused = phalanx(site, "cancel", str(run.folder.path))
        assert (refused.returncode, "is not running" in refused.stderr) == (2, True)


def test_a_job_whose_submit_was_killed_is_found(site: VirtualCluster, data: Path) -> None:
    other = site.shared / "other.sh"
    other.write_text("#!/bin/sh\n")
    of_several_lines = ("--parsable", "--begin=now+1hour", str(other), "{\n12 DONEISH\n\n}\n")
    another_s = site.run(site.head, "sbatch", *of_several_lines).stdout.strip()
    run = SubmittedRun(site, data, "unrecorded", LATER)
    killed_by_sbatch(site, "submit", *run.words)
    assert submissions(run.folder) == []

    def refused() -> str | None:
        again = phalanx(site, "submit", *run.words)
        assert again.returncode == 2, again.stdout
        found = re.search(r"^unrecorded is already job (\d+), which is PENDING", again.stderr)
        assert found or "is being submitted already" in again.stderr  # sbatch, which holds the lock
        return found and found[1]

    run.job = wait_until("SLURM's answer", refused)
    assert f"queued, job {run.job}" in phalanx(site, "status", "--root", f"{site.shared}/runs").stdout
    assert f"SLURM       job {run.job} PENDING" in phalanx(site, "status", str(run.folder.path)).stdout
    cancelled = phalanx(site, "cancel", str(run.folder.path)).stdout
    assert cancelled == f"job {run.job} of unrecorded is cancelled (it was PENDING)\n"
    site.run(site.head, "scancel", run.submit(), another_s)


def test_two_jobs_on_the_same_nodes(site: VirtualCluster, data: Path, reference: dict[int, StepRow]) -> None:
    first, second = SubmittedRun(site, data, "first"), SubmittedRun(site, data, "second", "run.seed=1234")
    first.submit()
    second.submit()
    ended = [run.wait_for_state() for run in (first, second)]
    assert [fields["JobState"] for fields in ended] == ["COMPLETED", "COMPLETED"], first.output() + second.output()
    assert ended[0]["NodeList"] == ended[1]["NodeList"]
    assert ended[1]["StartTime"] < ended[0]["EndTime"]
    assert learned(first.rows()) == learned(second.rows()) == learned(reference)
    assert [left_on(site, node) for node in site.nodes] == [[], []]


class TestFailures:
    def test_a_run_that_fails_is_a_job_that_fails(self, site: VirtualCluster, data: Path) -> None:
        run = SubmittedRun(site, data, "failing", "worker.start_timeout_s=0.001", "fault.max_restarts=0")
        run.submit()
        ended = run.wait_for_state()
        assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0"), run.output()
        assert [left_on(site, node) for node in site.nodes] == [[], []]

    def test_ray_that_does_not_start_is_named_with_its_last_words(self, site: VirtualCluster, data: Path) -> None:
        run = SubmittedRun(site, data, "rayless", "cluster.network_interface=nosuch0")
        run.submit()
        ended = run.wait_for_state()
        assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
        assert f"did not start Ray: {site.nodes[0]}: " in run.output()
        assert run.events() == []
        assert [left_on(site, node) for node in site.nodes] == [[], []]


WRONG = {
    "partition": (["cluster.slurm.partition=mian"], "cluster.slurm.partition=mian is not known; did you mean main?"),
    "gpus": (["cluster.slurm.gpus_per_node=3"], "3 GPUs per node are more than any node of partition main has (2)"),
    "no time": (["cluster.slurm.time_limit_min=0"], "cluster.slurm.time_limit_min=0 is too small; use 1 or more"),
    "not shared": (["run.root=/tmp/runs"], "run.root=/tmp/runs is below /tmp, which the nodes can't see"),
    "reservation": (
        ["cluster.slurm.reservation=friday"],
        "SLURM refuses the job: allocation failure: Requested reservation is invalid; set cluster.slurm.reservation",
    ),
    "key": (
        ["cluster.slurm.partiton=main"],
        "cluster.slurm.partiton is not a key; did you mean cluster.slurm.partition",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_input_is_refused_in_one_sentence(site: VirtualCluster, data: Path, wrong: str) -> None:
    words, sentence = WRONG[wrong]
    run = SubmittedRun(site, data, "refused", *words)
    done = phalanx(site, "submit", *run.words)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not run.folder.path.exists()


def test_where_there_is_no_slurm(site: VirtualCluster, data: Path, tmp_path: Path) -> None:
    run = SubmittedRun(site, data, "nowhere")
    command = [sys.executable, "-m", "launch.cli", "submit", *run.words]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sinfo is not on the PATH, so this is no SLURM cluster's login node" in done.stderr
    assert not run.folder.path.exists()
