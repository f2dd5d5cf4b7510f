"""A sweep as a SLURM job array: what `--array` says, what can't be one."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launch import sweep_job
from launch.compose import compose
from launch.slurm.array import array_text
from launch.slurm.commands import NoSlurmError
from launch.slurm.jobspec import driver_words
from launch.slurm.jobstate import SlurmError, UnansweredError
from launch.slurm.record import Submission
from launch.slurm.request import directives, job_request
from launch.submit import spec_of
from launch.sweep import recipe_of, run
from launch.sweep_array import check, submit
from launch.sweep_words import read_words
from orchestrator.errors import ConfigError
from orchestrator.observe.jsonlines import read_records
from orchestrator.runfolder import RunFolder
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.settings import Metric, Pruner
from orchestrator.sweep.study import Record
from orchestrator.sweep.studylog import locked

if TYPE_CHECKING:
    from rank.ranks import Data

SWEPT = ["cluster=slurm", "model=tiny", "cluster.device=cpu", "optim.lr=1e-3,2e-3"]


@pytest.mark.parametrize(
    ("tasks", "limit", "text"),
    [([0], None, "0"), ([3, 0, 1, 2], None, "0-3"), ([0, 2, 3, 7], 4, "0,2-3,7%4"), ([5, 1], 1, "1,5%1")],
)
def test_the_array_names_its_tasks(tasks: list[int], limit: int | None, text: str) -> None:
    assert array_text(tasks, limit) == text


def test_the_directive_comes_after_the_name() -> None:
    cluster = compose(["cluster=slurm"]).config.cluster
    written = directives(
        cluster, job_request(cluster, "cpu"), name="s", chdir="/w", output="/o", exclude=None, array="0-3%2"
    )
    assert written[:2] == ["--job-name=s", "--array=0-3%2"]


def test_a_task_is_not_taken_for_its_whole_array() -> None:
    assert Submission(job_id=12, time_s=0.0).slurm_id == "12"
    assert Submission(job_id=12, time_s=0.0, task=0).slurm_id == "12_0"


def test_a_task_reads_the_sweep_as_the_command_did(tmp_path: Path) -> None:
    recipe, read = recipe_of(SweepFolder(tmp_path), SWEPT)
    assert recipe.listed == read.trials() == [{"optim.lr": "0.001"}, {"optim.lr": "0.002"}]
    assert (recipe.metric, recipe.rungs.pruner) == (Metric.loss, Pruner.none)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sweep.algorithm=tpe"], "sweep.algorithm=tpe learns from results"),
        (["sweep.algorithm=pbt"], "sweep.algorithm=pbt learns from results"),
        (["sweep=asha"], "sweep.pruner=asha compares trials while they run"),
        (["cluster.num_workers=1,2"], "the tasks of a job array are alike, and cluster.* differs between trials"),
        (
            ["cluster.slurm.cpus_per_node=4", "cluster.cpus_per_worker=8"],
            "cluster.slurm.cpus_per_node=4 is fewer than",
        ),
    ],
)
def test_what_no_array_can_be(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check(read_words([*SWEPT, *words]))
    assert any(problem.startswith(sentence) for problem in refused.value.problems), refused.value


@pytest.mark.parametrize("words", [[], ["sweep.algorithm=random"], ["sweep.algorithm=quasi_random"]])
def test_what_an_array_can_be(words: list[str]) -> None:
    check(read_words([*SWEPT, *words]))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            [],
            "sweep.max_concurrent is not set, so the nodes of the job are not known; use sweep.max_concurrent=4",
        ),
        (
            ["sweep.max_concurrent=2", "cluster.slurm.cpus_per_node=4", "cluster.cpus_per_worker=8"],
            "cluster.slurm.cpus_per_node=4 is fewer than",
        ),
        (["sweep.max_concurrent=2", "cluster.num_workers=1,4"], "cluster.num_workers=4 needs 4 CPUs"),
    ],
)
def test_what_can_t_be_one_job(words: list[str], sentence: str) -> None:
    read = read_words([*SWEPT, *words])
    with pytest.raises(ConfigError) as refused:
        sweep_job.check(read, read.compose(read.trials()[0]))
    assert any(problem.startswith(sentence) for problem in refused.value.problems), refused.value


def test_one_job_has_the_nodes_of_the_trials_that_run_at_a_time() -> None:
    words = [*SWEPT, "sweep=asha", "sweep.max_concurrent=3", "cluster.num_workers=2", "cluster.workers_per_node=2"]
    read = read_words(words)
    base = read.compose(read.trials()[0])
    sweep_job.check(read, base)
    request = job_request(sweep_job.whole_cluster(read, base), "cpu")
    assert (request.nodes, request.least_nodes, request.cpus_per_node) == (3, 1, 2)
    with pytest.raises(ConfigError, match="--one-job is for a SLURM cluster"):
        run(["experiment=quickstart", "optim.lr=1e-3,2e-3", "--one-job"])


def test_the_driver_of_one_job_is_the_sweep() -> None:
    words = ["cluster=slurm", "optim.lr=1e-3,2e-3"]
    config = compose(words[:1]).config
    spec = replace(spec_of(config, words, "cpu", RunFolder(Path("/shared/runs/s"))), verb="sweep")
    assert driver_words(spec, ["v1"], "v1")[3:] == ["launch.cli", "sweep", *words, "cluster.scheduler=null"]
    step = driver_words(spec, ["v2"], "v1")
    assert step[step.index("-m") + 1 :] == ["launch.job.driver", "sweep", *words, "cluster.scheduler=null"]
    assert spec.submitted_as == "phalanx sweep --one-job cluster=slurm optim.lr=1e-3,2e-3"


def test_a_sweep_that_never_began_is_held_to_nothing(
    tmp_path: Path, data: "Data", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused by the site, corrected, typed again: there is no trial yet with which the others would not compare."""
    monkeypatch.setenv("PATH", str(tmp_path))
    words = [*SWEPT, "sweep.id=s", f"data.path={data.path}", f"run.root={tmp_path / 'runs'}", "train.seq_len=64"]
    for more in ([], ["--one-job", "sweep.max_concurrent=2"]):
        for steps in (10, 20):
            with pytest.raises(NoSlurmError, match="sinfo is not on the PATH"):
                run([*words, f"train.steps={steps}", *more])
            assert not (tmp_path / "runs/s").exists()


def test_an_array_that_slurm_may_have_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where sbatch does not say its number: the tasks find their trials."""
    programs = {"sbatch": "echo", "squeue": "exit 1", "sinfo": "echo 'main|main*|3|8|6000|(null)|infinite'"}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    folder, words = (
        SweepFolder(tmp_path / "runs/s"),
        [*SWEPT, "run.root=/home/nobody/runs", "data.path=/home/nobody/x"],
    )
    with locked(folder) as lock:
        with pytest.raises(SlurmError):
            submit(folder, *recipe_of(folder, words), words, lock)
        assert list(read_records(folder.study)) == []
        (tmp_path / "bin/squeue").write_text("#!/bin/sh\n")
        with pytest.raises(UnansweredError):
            submit(folder, *recipe_of(folder, words), words, lock)
    assert [record["event"] for record in read_records(folder.study)] == [Record.trial_added] * 2


@pytest.mark.parametrize("refused_at", ["--test-only", "--parsable"])
def test_an_array_that_slurm_refuses_leaves_no_trial_behind(
    tmp_path: Path, refused_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of one that is there already, nothing is changed."""
    refusing = f'case "$*" in *{refused_at}*) echo "sbatch: error: Invalid account" >&2; exit 1;; *) echo 12;; esac'
    programs = {"sbatch": "echo 11", "squeue": "", "sinfo": "echo 'main|main*|3|8|6000|(null)|infinite'"}
    programs["scontrol"] = "echo 'JobId=11 JobState=PENDING Reason=None'"
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    folder = SweepFolder(tmp_path / "runs/s")

    def submit_with(rates: str) -> None:
        words = ["cluster=slurm", "model=tiny", "cluster.device=cpu", f"optim.lr={rates}"]
        words += ["run.root=/home/nobody/runs", "data.path=/home/nobody/data"]
        with locked(folder) as lock:
            submit(folder, *recipe_of(folder, words), words, lock)

    submit_with("1e-3,2e-3")
    before, script = list(read_records(folder.study)), folder.array_script.read_text()
    (tmp_path / "bin/sbatch").write_text(f"#!/bin/sh\n{refusing}\n")
    with pytest.raises(ConfigError, match=r"^SLURM refuses the job: Invalid account; set cluster.slurm.account"):
        submit_with("1e-3,2e-3,4e-3,8e-3")
    assert list(read_records(folder.study)) == before
    for name in ("squeue", "scontrol"):
        answer = (tmp_path / "bin" / name).read_text()
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
        with pytest.raises(SlurmError, match="Unable to contact slurm controller"):
            submit_with("1e-3,2e-3,4e-3,8e-3")
        (tmp_path / "bin" / name).write_text(answer)
        assert list(read_records(folder.study)) == before
    assert refused_at == "--parsable" or folder.array_script.read_text() == script
    assert not list(folder.slurm.glob("*.new"))
    (tmp_path / "bin/sbatch").write_text("#!/bin/sh\necho 13\n")
    submit_with("1e-3,2e-3,4e-3,8e-3")
    started = [record["job"] for record in read_records(folder.study) if record["event"] == Record.trial_started]
    assert started == [11, 11, 13, 13]
