"""A sweep as a SLURM job array: what `--array` says, what can't be one."""

import pytest

from launch.compose import compose
from launch.slurm.array import array_text
from launch.slurm.record import Submission
from launch.slurm.request import directives, job_request
from launch.sweep_array import check
from launch.sweep_words import read_words
from orchestrator.errors import ConfigError

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
