"""Commands that are printed for a person to copy, where folders have spaces and quotes in their names."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import cancel, cli
from launch.sweep_status import sweep_lines
from orchestrator.data.shards import read_manifest
from orchestrator.errors import PhalanxError
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.studylog import locked

NAME = "it's my run"


def cancel_a_run_that_is_not_running(folder: Path) -> None:
    (folder / "plan.json").write_text("{}")
    cancel.run([str(folder)])


def read_data_that_is_not_there(folder: Path) -> None:
    read_manifest(str(folder))


def start_a_sweep_twice(folder: Path) -> None:
    with locked(SweepFolder(folder)), locked(SweepFolder(folder)):
        pass


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (cancel_a_run_that_is_not_running, ["phalanx", "status", "{}"]),
        (read_data_that_is_not_there, ["phalanx", "prepare", "data.source=...", "data.path={}"]),
        (start_a_sweep_twice, ["phalanx", "status", "{}"]),
    ],
)
def test_the_way_out_of_an_error(tmp_path: Path, act: Callable[[Path], None], words: list[str]) -> None:
    folder = tmp_path / NAME
    folder.mkdir()
    with pytest.raises(PhalanxError) as refused:
        act(folder)
    command = str(refused.value)
    assert shlex.split(command[command.index("phalanx ") :]) == [word.format(folder) for word in words]


def test_a_copied_recipe_is_tried_with_the_line_below_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cp", "model/tiny", str(tmp_path / NAME / "model/mine.yaml")]) == 0
    command = capsys.readouterr().out.splitlines()[1]
    assert shlex.split(command) == ["phalanx", "plan", "--config-dir", str(tmp_path / NAME), "model=mine"]


def test_the_next_step_of_a_sweep(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / NAME)
    folder.path.mkdir()
    folder.description.write_text('{"metric": "loss"}')
    assert shlex.split(sweep_lines(folder, None)[-1])[1:] == ["phalanx", "logs", f"{folder.trials}/TRIAL"]
    folder.report.touch()
    assert shlex.split(sweep_lines(folder, None)[-1])[1:] == ["open", str(folder.report)]
