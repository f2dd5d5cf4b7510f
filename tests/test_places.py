"""No password reaches the run folder by way of the config."""

import pytest

from launch.compose import compose
from orchestrator.errors import ConfigError


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
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=tiny_test", word])
    assert shown in str(caught.value)
    assert "pa55" not in str(caught.value)
    assert "FSSPEC_FTP_PASSWORD" in str(caught.value)


@pytest.mark.parametrize(
    "word", ["checkpoint.url=sftp://me@host/runs", "data.path=host:/a@b", "data.source=s3://bucket/a:b@c.txt"]
)
def test_other_places_pass(word):
    compose(["experiment=tiny_test", word])
