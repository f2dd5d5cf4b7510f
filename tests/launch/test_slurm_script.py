"""The sbatch script against reviewed text; what can't be in a profile is refused, all of it at once."""

import dataclasses
import subprocess
from pathlib import Path

import pytest
from golden_texts import check_golden

from launch.compose import compose
from launch.slurm.jobspec import JobSpec, check_words, driver_words, job_spec, node_words
from launch.slurm.request import directives, job_request, profile_problems
from launch.slurm.script import script_text
from launch.submit import TEMPLATE
from orchestrator.codec import decode, encode
from orchestrator.config import RunConfig
from orchestrator.errors import ConfigError

TWO_BY_EIGHT = ["cluster=slurm_h100x8", "train.global_batch_size=64"]
EVERYTHING = [
    *TWO_BY_EIGHT,
    "cluster.slurm.account=a b; rm -rf /",
    "cluster.slurm.qos=long",
    "cluster.slurm.constraint='ib&nvme'",
    "cluster.slurm.exclude='n[1-3],n7'",
    "cluster.slurm.reservation=maintenance",
    "cluster.slurm.spare_nodes=1",
    "cluster.slurm.requeue=never",
    "cluster.slurm.setup=['module load cuda/13.0','source $HOME/venv/bin/activate']",
    "cluster.slurm.environment={NAME:'$(id) `id`',WHERE:/scratch}",
    "cluster.slurm.extra={mail-type:END,nice:100,exclusive:true,licenses:null}",
]


def spec_of(config: RunConfig) -> JobSpec:
    request = job_request(config.cluster, "cuda")
    overrides = ["model=tiny", "run.id=it's mine"]
    return job_spec(
        config,
        request,
        device="cuda",
        run_folder="/shared/my runs/r1",
        overrides=overrides,
        python="/env/bin/python",
    )


def script_of(*words: str) -> str:
    config = compose(list(words)).config
    assert profile_problems(config.cluster, "cuda") == []
    spec = spec_of(config)
    return script_text(
        TEMPLATE.read_text(),
        directives=directives(
            config.cluster,
            spec.request,
            name="r1",
            chdir="/shared/my work",
            output="/shared/my runs/r1/slurm/%j.out",
            exclude=config.cluster.slurm.exclude,
        ),
        setup=config.cluster.slurm.setup,
        environment=config.cluster.slurm.environment,
        command=spec.command,
    )


def container(runtime: str, image: str) -> list[str]:
    inside = f"{{runtime:{runtime},image:'{image}',mounts:[/shared,'/data:/d'],arguments:[--nv]}}"
    return [*TWO_BY_EIGHT, f"cluster.slurm.container={inside}"]


@pytest.mark.parametrize(("name", "words"), [("slurm_h100x8", TWO_BY_EIGHT), ("slurm_everything", EVERYTHING)])
def test_scripts(name: str, words: list[str]) -> None:
    check_golden(f"{name}.sbatch", script_of(*words))


def test_bash_reads_values_as_text(tmp_path: Path) -> None:
    """Nothing but the set-up lines is run: the script is, with its last command replaced."""
    script = script_of(*EVERYTHING, "cluster.slurm.setup=['MADE_BY_SETUP=$(echo yes)']")
    last = next(line for line in script.splitlines() if line.startswith("exec "))
    printing = script.replace(last, 'printf "%s|" "$NAME" "$WHERE" "$MADE_BY_SETUP"')
    done = subprocess.run(["bash"], input=printing, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "$(id) `id`|/scratch|yes|"
    words = subprocess.run(
        ["bash", "-c", last.replace("exec ", 'printf "%s|" ')], capture_output=True, text=True, check=True
    )
    assert words.stdout == "/env/bin/python|-P|-m|launch.job.batch|/shared/my runs/r1|"


def test_folders_with_odd_names() -> None:
    """A % of a folder's own is none of SLURM's blanks; a line's end would hand the rest to the shell."""
    cluster = compose(["cluster=slurm"]).config.cluster

    def written(chdir: str, output: str) -> list[str]:
        asked = job_request(cluster, "cpu")
        return directives(cluster, asked, name="r1", chdir=chdir, output=output, exclude=None)

    assert written("/w", "/50% of it's ü/slurm/%j.out")[-2:] == [
        "--output='/50%% of it'\"'\"'s ü/slurm/%j.out'",
        "--chdir=/w",
    ]
    for chdir, output, what in (("/w", "/a\nid/%j.out", "run.root"), ("/a\\b", "/a/%j.out", "the folder that you")):
        with pytest.raises(ConfigError, match=f"^{what} .*has a line's end or a backslash in its name"):
            written(chdir, output)


def test_the_template_has_no_logic() -> None:
    lines = TEMPLATE.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    code = [line for line in lines[1:] if not line.startswith("#")]
    assert code == ["@directives@", "set -eo pipefail", "@setup@", "exec @command@"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", TWO_BY_EIGHT),
        ("pyxis", container("pyxis", "nvcr.io#nvidia/pytorch:26.08-py3")),
        ("apptainer", container("apptainer", "/images/phalanx.sif")),
    ],
)
def test_words_of_the_steps(name: str, words: list[str]) -> None:
    spec = spec_of(compose(words).config)
    steps = (spec.command, check_words(spec), node_words(spec), driver_words(spec, ["n7", "n8"], "n7"))
    text = "\n\n".join("\n".join(step) for step in steps)
    check_golden(f"slurm_steps_{name}.txt", text + "\n")


def test_a_driver_on_another_node_is_a_step_and_fewer_nodes_have_fewer_workers() -> None:
    spec = spec_of(compose([*TWO_BY_EIGHT, "cluster.min_workers=8"]).config)
    assert spec.request.least_nodes == 1
    words = driver_words(spec, ["n8"], "n7")
    assert words[0] == "srun"
    assert "--nodelist=n8" in words
    assert "launch.job.driver" in words
    assert words[-1] == "cluster.num_workers=8"
    assert "--nodelist=n8" in node_words(spec, ["n8"])


def test_a_spec_survives_its_file() -> None:
    spec = spec_of(compose(container("pyxis", "image")).config)
    assert decode(JobSpec, encode(spec)) == spec


@pytest.mark.parametrize(
    ("workers", "per_node", "spare", "nodes", "all_nodes"), [(1, None, 0, 1, 1), (16, 8, 0, 2, 2), (9, 8, 1, 2, 3)]
)
def test_nodes_follow_from_the_workers(
    workers: int, per_node: int | None, spare: int, nodes: int, all_nodes: int
) -> None:
    cluster = compose(["cluster=slurm"]).config.cluster
    slurm = dataclasses.replace(cluster.slurm, spare_nodes=spare)
    cluster = dataclasses.replace(cluster, num_workers=workers, workers_per_node=per_node, slurm=slurm)
    request = job_request(cluster, "cpu")
    assert (request.nodes, request.all_nodes, request.gpus_per_node) == (nodes, all_nodes, 0)


def test_every_problem_of_a_profile_is_named_at_once() -> None:
    words = [
        "cluster=slurm",
        "cluster.num_workers=16",
        "cluster.workers_per_node=8",
        "cluster.address=auto",
        "cluster.slurm.gpus_per_node=4",
        "cluster.slurm.cpus_per_node=4",
        "cluster.slurm.notice_s=3600",
        "cluster.slurm.memory_per_node=lots",
        'cluster.slurm.account="it\'s"',
        "cluster.slurm.extra={partition:gpu,Mail_Type:END,array:1-3}",
        "cluster.slurm.environment={1A:x}",
        'cluster.slurm.setup=["a\nb"]',
        "cluster.slurm.container.image=x.sif",
        "train.global_batch_size=32",
    ]
    found = "\n".join(profile_problems(compose(words).config.cluster, "cuda"))
    for part in (
        "cluster.address=auto can't be used with submit",
        "cluster.slurm.gpus_per_node=4 is fewer than cluster.workers_per_node=8",
        "cluster.slurm.cpus_per_node=4 is fewer than",
        "cluster.slurm.notice_s=3600 leaves nothing of cluster.slurm.time_limit_min=60",
        "cluster.slurm.memory_per_node=lots is not a size",
        'cluster.slurm.account="it\'s" is not one line of plain text',
        "cluster.slurm.extra.partition would contradict what phalanx writes; set cluster.slurm.partition",
        "cluster.slurm.extra.Mail_Type is not a directive",
        "cluster.slurm.extra.array would contradict",
        "cluster.slurm.environment.1A is not a variable's name",
        "cluster.slurm.setup has an item of several lines",
        "cluster.slurm.container.runtime=none and image=x.sif don't go together",
    ):
        assert part in found
    assert len(found.splitlines()) == 12
    unset = dataclasses.replace(compose(["cluster=slurm"]).config.cluster, num_workers=16, workers_per_node=None)
    assert "cluster.workers_per_node is not set" in profile_problems(unset, "cpu")[0]
