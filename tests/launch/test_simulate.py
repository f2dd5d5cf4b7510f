"""The verb: what it prints, its JSON, its exit codes, and that a violation comes with the words that replay it."""

import json

import pytest

from launch import cli

WORDS = ["simulate", "experiment=llama_8b_h100x64", "--gpus", "64"]


def test_it_predicts_and_advises_and_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, "--days", "200", "--schedules", "6", "--step-s", "60"]) == 0
    shown = capsys.readouterr().out
    for words in ("64 GPUs on 8 nodes", "goodput ", "productive", "fault", "snapshot.every_steps=", "0 violations"):
        assert words in shown


def test_its_json_is_one_object_and_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, "--days", "1", "--schedules", "4", "--step-s", "60", "--json"]) == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert said["nodes"] == 8
    assert said["rehearsal"]["schedules"] == 4
    assert said["rehearsal"]["failing"] == []
    assert 0.5 < said["prediction"]["goodput"] < 1
    assert said["advice"]["checkpoint_every_steps"] >= 1
    assert "rehearsing 4 schedules" in captured.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--days", "-1"], "--days -1.0 must be 0 or more"),
        (["--gpus", "13"], "13 GPUs are not nodes of 8"),
        (["--days", "nan"], "--days nan must be 0 or more"),
        (["--days", "inf"], "--days inf must be 0 or more"),
        (["--step-s", "0"], "--step-s 0.0 must be more than 0"),
        (["--step-s", "nan"], "--step-s nan must be more than 0"),
    ],
)
def test_wrong_arguments_are_refused(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "experiment=llama_8b_h100x64", *options]) == 2
    assert sentence in capsys.readouterr().err
