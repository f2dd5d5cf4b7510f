"""No password reaches the run folder by way of the config."""

import pytest

from launch.compose import compose
from orchestrator.errors import ConfigError


def refusal(word: str) -> str:
    """Why a config with this word is refused, in words that do not show the secret."""
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=tiny_test", word])
    assert "pa55" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("checkpoint.url=sftp://me:pa55@host/runs", "checkpoint.url=sftp://me:***@host/runs"),
        ("data.path=s3://KEY:pa55@bucket/x", "data.path=s3://KEY:***@bucket/x"),
        ("data.source=[a.txt,'simplecache::ftp://me:pa55@host/*.txt']", "data.source=simplecache::ftp://me:***@host"),
        ("checkpoint.init_from=https://:pa55@host/", "checkpoint.init_from=https://:***@host/"),
    ],
)
def test_a_password_in_a_place_is_refused_and_not_shown(word, shown):
    said = refusal(word)
    assert shown in said
    assert "FSSPEC_FTP_PASSWORD" in said


@pytest.mark.parametrize(
    "word", ["checkpoint.url=sftp://me@host/runs", "data.path=host:/a@b", "data.source=s3://bucket/a:b@c.txt"]
)
def test_other_places_pass(word):
    compose(["experiment=tiny_test", word])


@pytest.mark.parametrize(
    ("word", "where"),
    [
        ("cluster.slurm.environment={WANDB_API_KEY: pa55}", "cluster.slurm.environment.WANDB_API_KEY looks like"),
        ("cluster.slurm.environment={HTTPS_PROXY: 'http://me:pa55@proxy'}", "cluster.slurm.environment.HTTPS_PROXY "),
        ("cluster.slurm.setup=['export HF_TOKEN=pa55']", "cluster.slurm.setup, which sets HF_TOKEN, looks like"),
        ("cluster.slurm.extra={export: 'ALL,HF_TOKEN=pa55'}", "cluster.slurm.extra, which sets HF_TOKEN, looks like"),
        (
            "cluster.slurm.container={runtime: apptainer, image: x.sif, arguments: ['--env=WANDB_API_KEY=pa55']}",
            "cluster.slurm.container.arguments, which sets WANDB_API_KEY, looks like",
        ),
        (
            "cluster.slurm.container={runtime: apptainer, image: x.sif, arguments: ['--env', 'A=1,HF_TOKEN=pa55']}",
            "cluster.slurm.container.arguments, which sets HF_TOKEN, looks like",
        ),
        ("cluster.kuberay.environment={HF_TOKEN: pa55}", "cluster.kuberay.environment.HF_TOKEN looks like"),
    ],
)
def test_a_secret_among_a_jobs_variables_is_refused_and_not_shown(word, where):
    assert where in refusal(word)


@pytest.mark.parametrize(
    "word",
    [
        "cluster.slurm.environment={TOKENIZERS_PARALLELISM: 'false', AWS_ACCESS_KEY_ID: x, HTTPS_PROXY: 'http://proxy:8080'}",
        "cluster.slurm.setup=['export HF_TOKEN=$(cat ~/.token)','export RAY_AUTH_TOKEN_PATH=/home/me/t']",
        "cluster.kuberay.secrets={WANDB_API_KEY: wandb/key}",
    ],
)
def test_other_variables_pass(word):
    compose(["experiment=tiny_test", word])
