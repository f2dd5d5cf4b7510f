"""What sinfo and scontrol say, read; what a site can't give is refused by name."""

import os
from pathlib import Path

import pytest

from launch.compose import compose
from launch.slurm.commands import way_out
from launch.slurm.jobstate import (
    JobState,
    QueuedJob,
    SlurmError,
    UnansweredError,
    job_words,
    parse_accounted,
    parse_job,
    parse_queue,
)
from launch.slurm.partitions import parse_partitions, request_problems
from launch.slurm.record import newest_submission
from launch.slurm.request import JobRequest
from launch.slurm.sharing import not_shared
from launch.submit import alone, enqueue, hand_in, spec_of, write
from orchestrator.errors import ConfigError
from orchestrator.runfolder import RunFolder
from orchestrator.slurm_config import SlurmConfig

SINFO = """\
main|main*|3|8|6000|gpu:h100:2(S:0-1),nvme:1|infinite
gpu|gpu|4|96+|1000000+|gpu:h100:8|1-00:00:00
gpu|gpu|2|64|500000|gpu:a100:4|1-00:00:00
cpu|cpu|10|128|500000|(null)|30:00
"""
JOB = (
    "JobId=12 JobName=my job UserId=ann(7) Priority=1 JobState={state} Reason={reason} Dependency=(null) Requeue=1 "
    "Restarts=2 ExitCode=0:0 RunTime=00:00:02 TimeLimit=00:30:00 StartTime=2026-11-27T14:02:20 "
    "EndTime=2026-11-27T14:32:20 PreemptTime={preempt} NodeList={nodes} BatchHost=v1 NumNodes=2 "
    "Command=/x/job.sbatch WorkDir=/x"
)


def request(**fields: object) -> JobRequest:
    sizes = {"nodes": 1, "least_nodes": 1, "workers_per_node": 1, "spare_nodes": 0}
    parts = {"cpus_per_node": 1, "gpus_per_node": 0, "gpu_type": None}
    return JobRequest(**sizes | parts | fields)  # type: ignore[arg-type]


def refused(slurm: SlurmConfig, **fields: object) -> list[str]:
    return request_problems(slurm, request(**fields), parse_partitions(SINFO))


def test_what_a_site_has() -> None:
    main, gpu, cpu = parse_partitions(SINFO)
    assert (main.is_default, main.time_limit_min, main.kinds[0].gpus) == (True, None, {"h100": 2})
    assert (gpu.time_limit_min, [kind.count for kind in gpu.kinds], gpu.kinds[0].cpus) == (1440, [4, 2], 96)
    assert (cpu.time_limit_min, cpu.kinds[0].gpus) == (30, {})


@pytest.mark.parametrize(
    ("slurm", "fields", "sentence"),
    [
        (
            SlurmConfig(partition="gpus"),
            {},
            "cluster.slurm.partition=gpus is not known; did you mean gpu? known: main",
        ),
        (SlurmConfig(), {"gpus_per_node": 4}, "4 GPUs per node are more than any node of partition main has (2)"),
        (
            SlurmConfig(partition="cpu"),
            {"gpus_per_node": 1},
            "has (0); use cluster.workers_per_node=1 and cluster.dev",
        ),
        (
            SlurmConfig(partition="gpu"),
            {"gpus_per_node": 8, "gpu_type": "a100"},
            "8 GPUs per node are more than any node of partition gpu has (4)",
        ),
        (
            SlurmConfig(partition="gpu"),
            {"gpus_per_node": 1, "gpu_type": "h10"},
            "cluster.slurm.gpu_type=h10 in partition gpu is not known; did you mean h100? known: a100, h100",
        ),
        (SlurmConfig(), {"cpus_per_node": 9}, "9 CPUs per node are more than any node of partition main has (8)"),
        (
            SlurmConfig(spare_nodes=1),
            {"nodes": 3, "spare_nodes": 1},
            "3 nodes and 1 spare are more than partition main",
        ),
        (
            SlurmConfig(partition="cpu", time_limit_min=31),
            {},
            "time_limit_min=31 is longer than the partition allows",
        ),
    ],
)
def test_what_a_site_can_not_give(slurm: SlurmConfig, fields: dict[str, object], sentence: str) -> None:
    (problem,) = refused(slurm, **fields)
    assert sentence in problem


def test_what_it_can_give() -> None:
    assert refused(SlurmConfig(partition="cpu,gpu", time_limit_min=60), gpus_per_node=8, cpus_per_node=128) == []


def test_a_job_in_words() -> None:
    waiting = parse_job(JOB.format(state="PENDING", reason="Resources", preempt="None", nodes="(null)"))
    assert waiting.state.is_waiting
    assert job_words(waiting, 0.0) == "job 12 PENDING (Resources), starts about 2026-11-27 14:02, 2 restarts"
    running = parse_job(JOB.format(state="RUNNING", reason="None", preempt="None", nodes="v[1-3]"))
    assert running.end_s is not None
    assert job_words(running, running.end_s - 600) == "job 12 RUNNING on v[1-3], 10 min left, 2 restarts"
    assert (running.batch_host, running.preempt_s) == ("v1", None)
    ended = parse_job(JOB.format(state="NODE_FAIL", reason="None", preempt="2026-11-27T14:10:00", nodes="v[1-3]"))
    assert ended.state.is_end and ended.preempt_s is not None


def test_a_job_that_only_accounting_knows() -> None:
    times = "2026-11-27T14:02:20|2026-11-27T14:32:20"
    rows = f"12|REQUEUED|0:0|v[1-2]|{times}\n12|CANCELLED by 1000|0:15|v3|{times}\n"
    view = parse_accounted(12, rows)
    assert view is not None
    assert job_words(view, 0.0) == "job 12 CANCELLED on v3, exit code 0:15, 1 restart"
    never = parse_accounted(12, "12|CANCELLED by 1000|0:0|None assigned|None|2026-11-27T14:32:20\n")
    assert never is not None
    assert (never.nodes, never.start_s, never.restarts) == (None, None, 0)
    assert parse_accounted(12, "") is None
    with pytest.raises(SlurmError, match="job 12 is VANISHED"):
        parse_accounted(12, f"12|VANISHED|0:0|v1|{times}\n")


def test_every_state_waits_or_has_ended_or_runs_and_an_unknown_one_is_an_error() -> None:
    assert not [state for state in JobState if state.is_waiting and state.is_end]
    assert not (JobState.COMPLETING.is_end or JobState.RUNNING.is_end or JobState.SUSPENDED.is_waiting)
    with pytest.raises(SlurmError, match="job 12 is FROBNICATED, which phalanx does not know"):
        parse_job(JOB.format(state="FROBNICATED", reason="None", preempt="None", nodes="v1"))
    lines = "phalanx-queue 12 RUNNING \nphalanx-queue 13_2 PENDING /my runs/x/slurm/array.sbatch\n"
    queue = parse_queue(lines)
    assert queue == {
        "12": QueuedJob(JobState.RUNNING, ""),
        "13_2": QueuedJob(JobState.PENDING, "/my runs/x/slurm/array.sbatch"),
    }
    with pytest.raises(SlurmError, match="job 13 is DONEISH"):
        parse_queue("phalanx-queue 12 RUNNING\nphalanx-queue 13 DONEISH\n")
    of_several_lines = f"{lines}phalanx-queue 14 RUNNING /x.sh {{\n 1 2\n13 DONEISH\n\n12 PENDING /y\n{{}}\n"
    assert parse_queue(of_several_lines) == {**queue, "14": QueuedJob(JobState.RUNNING, "/x.sh {")}


def test_folders_of_this_machine_alone_are_known() -> None:
    assert "data.path=/dev/shm/x is below /dev/shm, which the nodes can't see" in str(
        not_shared("data.path", "/dev/shm/x")
    )
    assert not_shared("run.root", "/tmp/runs") is not None
    assert not_shared("run.root", "/home/nobody/runs") is None
    assert not_shared("data.path", "s3://bucket/data") is None
    assert not_shared("run.root", str(Path("/").joinpath("runs"))) is None


@pytest.mark.parametrize(
    ("complaint", "key"),
    [
        ("Batch job submission failed: Invalid account or account/partition combination specified", "account"),
        ("allocation failure: Invalid qos specification", "qos"),
        ("allocation failure: Requested time limit is invalid (missing or exceeds some limit)", "time_limit_min"),
        ("allocation failure: Memory specification can not be satisfied", "memory_per_node"),
        ("allocation failure: Requested reservation is invalid", "reservation"),
        ("Batch job submission failed: Invalid node name specified", "exclude"),
    ],
)
def test_a_refusal_names_the_key_that_may_cure_it(complaint: str, key: str) -> None:
    assert f"cluster.slurm.{key}" in way_out(complaint)
    assert "sinfo" in way_out("something new")


def test_a_job_that_slurm_has_taken_is_written_down_whatever_comes_amid_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while sbatch answers: without the record nobody would find the job."""
    program = tmp_path / "bin/sbatch"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\ncase "$*" in *--test-only*) exit 0;; esac\nkill -INT $PPID\necho 12\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    folder = RunFolder(tmp_path / "runs/first")
    config = compose(["experiment=tiny_test", "cluster=slurm"]).config
    spec = spec_of(config, ["experiment=tiny_test"], "cpu", folder)
    with alone(folder) as lock, pytest.raises(KeyboardInterrupt):
        write(config, spec, "cpu", folder)
        hand_in(folder, lock)
    newest = newest_submission(folder)
    assert newest is not None
    assert newest.job_id == 12
    assert capsys.readouterr().out == "Submitted batch job 12\n"


@pytest.mark.parametrize(
    ("sbatch", "error", "is_left"),
    [
        ("\n", OSError, False),  # it can't be started
        ("#!/bin/sh\necho 'error: Invalid account' >&2\nexit 1\n", ConfigError, False),
        ('#!/bin/sh\ncase "$*" in *--test-only*) exit 0;; esac\nexit 1\n', ConfigError, False),
        ('#!/bin/sh\ncase "$*" in *--test-only*) exit 0;; esac\necho\n', UnansweredError, True),
    ],
)
def test_of_a_run_that_is_no_job_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sbatch: str, error: type[Exception], is_left: bool
) -> None:
    """Unless SLURM may have the job all the same."""
    program = tmp_path / "bin/sbatch"
    program.parent.mkdir()
    program.write_text(sbatch)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    folder = RunFolder(tmp_path / "runs/first")
    config = compose(["experiment=tiny_test", "cluster=slurm"]).config
    with pytest.raises(error):
        enqueue(config, spec_of(config, ["experiment=tiny_test"], "cpu", folder), "cpu", folder)
    assert folder.path.exists() is is_left


def test_of_two_that_submit_a_run_at_once_the_second_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs/first")
    refused = pytest.raises(ConfigError, match=f"^first is being submitted already .pid {os.getpid()} on ")
    with alone(folder), refused, alone(folder):
        pass
    with alone(folder):
        pass
