"""What a round of a population's member is started with, as `phalanx train` reads it."""

from pathlib import Path

import pytest

from launch.compose import compose
from launch.sweep import _command, part_words
from launch.sweep_words import SweepWords, read_words
from orchestrator.config import RunConfig
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.study import Part, Trial

WORDS = ["experiment=tiny_test", "train.steps=40", "sweep=pbt", "optim.lr=tag(log,interval(1e-4,1e-2))"]


def started(folder: SweepFolder, read: SweepWords, part: Part | None) -> RunConfig:
    trial = Trial(id="s-m1r1-0a", number=5, parameters={"optim.lr": "0.002"}, part=part)
    command = _command(folder, read, trial)
    assert command[1:4] == ["-m", "launch.cli", "train"]
    config = compose(command[4:]).config
    assert read.compose(trial.parameters, part_words(folder, read, trial)).train.steps == config.train.steps
    return config


def test_a_second_round_begins_at_its_parent_s_checkpoint_and_keeps_the_whole_schedule(tmp_path: Path) -> None:
    folder, read = SweepFolder(tmp_path / "s"), read_words(WORDS)
    config = started(folder, read, Part(member=1, round=1, parent="s-m0r0-0b", steps=16))
    assert (config.train.steps, config.optim.schedule_steps, config.optim.lr) == (16, 40, 0.002)
    assert config.checkpoint.init_from == str(tmp_path / "s/trials/s-m0r0-0b/checkpoints")
    assert (config.run.root, config.run.id) == (str(tmp_path / "s/trials"), "s-m1r1-0a")


def test_with_a_store_the_parent_s_is_beside_the_trial_s(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "s")
    read = read_words([*WORDS, "checkpoint.url=s3://bucket/runs", "optim.schedule_steps=90"])
    config = started(folder, read, Part(member=1, round=2, parent="s-m0r1-0b", steps=24))
    assert config.checkpoint.url == "s3://bucket/runs/s-m1r1-0a"
    assert config.checkpoint.init_from == "s3://bucket/runs/s-m0r1-0b"
    assert config.optim.schedule_steps == 90


@pytest.mark.parametrize("part", [None, Part(member=1, round=0, parent=None, steps=8)])
def test_a_first_round_takes_over_nothing(tmp_path: Path, part: Part | None) -> None:
    config = started(SweepFolder(tmp_path / "s"), read_words(WORDS), part)
    assert config.checkpoint.init_from is None
    assert config.train.steps == (40 if part is None else 8)
    assert config.optim.schedule_steps == (None if part is None else 40)
