"""What a rerun is, before anything starts."""

import json
from pathlib import Path

import pytest

from launch import cli
from launch.compose import compose, resolved_yaml
from launch.rerun import again
from launch.slurm.record import Submission, append_submission
from orchestrator.errors import ConfigError
from orchestrator.runfolder import RunFolder

WORDS = ["experiment=quickstart", "optim.lr=2e-3", "run.id=first"]


def recorded(root: Path, *words: str, text_changes: tuple[str, str] = ("", "")) -> RunFolder:
    folder = RunFolder(root / "runs/first")
    folder.path.mkdir(parents=True)
    words = (*WORDS, *words)
    folder.config.write_text(resolved_yaml(compose(words).config).replace(*text_changes))
    folder.overrides.write_text("".join(f"- {json.dumps(word)}\n" for word in words))
    folder.env.write_text(json.dumps({"folder": str(root)}))
    return folder


@pytest.fixture(autouse=True)
def started_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_same_config_under_a_new_id(tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    config, words = again(folder, [])
    assert words == ["experiment=quickstart", "optim.lr=2e-3", "run.id=first-2"]
    assert resolved_yaml(config) == folder.config.read_text().replace("id: first\n", "id: first-2\n")
    assert resolved_yaml(compose(words).config) == resolved_yaml(config)
    (tmp_path / "runs/first-2").mkdir()
    assert again(folder, [])[0].run.id == "first-3"


def test_something_changed(tmp_path: Path) -> None:
    config, words = again(recorded(tmp_path), ["run.seed=7", "run.id=seven"])
    assert (config.run.id, config.run.seed, config.optim.lr) == ("seven", 7, 2e-3)
    assert words == ["experiment=quickstart", "optim.lr=2e-3", "run.seed=7", "run.id=seven"]


def test_a_recipe_that_has_changed_since_counts_as_it_was(tmp_path: Path) -> None:
    folder = recorded(tmp_path, text_changes=("warmup_steps: 20", "warmup_steps: 33"))
    config, words = again(folder, [])
    assert config.optim.warmup_steps == 33
    assert resolved_yaml(compose(words).config) == resolved_yaml(config), "what is printed is what is run"
    with pytest.raises(ConfigError, match=r"optim.warmup_steps was 33 in run first, its recipe says 20 by now"):
        again(folder, ["run.seed=7"])
    assert again(folder, ["run.seed=7", "optim.warmup_steps=33"])[0].optim.warmup_steps == 33


def test_what_two_runs_must_not_share(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "checkpoint.url=/mnt/first")
    with pytest.raises(ConfigError, match=r"checkpoint.url=/mnt/first is run first's own; give the new run another"):
        again(folder, [])
    config, words = again(folder, ["checkpoint.url=/mnt/second"])
    assert config.checkpoint.url == "/mnt/second"
    assert "checkpoint.url=/mnt/first" not in words


def test_data_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = recorded(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=f"run first was started in {tmp_path}; go there, or add data.path="):
        again(folder, [])


def test_the_command_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(tmp_path)
    assert cli.main(["rerun", "first", "--print", "run.seed=7"]) == 0
    shown = capsys.readouterr().out
    assert shown == "phalanx train experiment=quickstart optim.lr=2e-3 run.seed=7 run.id=first-2\n"


def test_what_was_submitted_is_submitted_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded(tmp_path, "cluster=slurm", "cluster.num_workers=2")
    append_submission(folder, Submission(job_id=7, time_s=0.0))
    assert cli.main(["rerun", "first", "--print"]) == 0
    assert capsys.readouterr().out.startswith("phalanx submit experiment=quickstart optim.lr=2e-3 cluster=slurm ")
    assert cli.main(["rerun", "first", "cluster.slurm.time_limit_min=1"]) == 2
    assert "leaves nothing of cluster.slurm.time_limit_min=1" in capsys.readouterr().err


def test_refusals_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded(tmp_path)
    assert cli.main(["rerun", "frist"]) == 2
    assert "did you mean first?" in capsys.readouterr().err
    assert cli.main(["rerun", "first", "optim.lrr=1"]) == 2
    assert "did you mean optim.lr?" in capsys.readouterr().err
    folder.overrides.unlink()
    assert cli.main(["rerun", "first"]) == 2
    assert "overrides.yaml can't be read" in capsys.readouterr().err
