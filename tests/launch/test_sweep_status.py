"""`phalanx status` of a sweep, from its folder."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from queue_file import squeue_of

from launch import cancel, status
from launch.slurm.jobstate import SlurmError
from launch.slurm.record import Submission, append_submission
from launch.status import run
from orchestrator.errors import ConfigError
from orchestrator.runfolder import RunFolder
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.study import Record
from orchestrator.sweep.studylog import StudyLog


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    """One trial finished, one that is recorded as running."""
    folder = SweepFolder(tmp_path / "runs/s")
    folder.path.mkdir(parents=True)
    folder.description.write_text(json.dumps({"metric": "loss"}))
    log = StudyLog(folder)
    for number, rate in enumerate(("0.1", "0.2")):
        trial = log.add(f"s-{number}", {"optim.lr": rate})
        trial = log.record(Record.trial_started, trial, pid=0, born_s=0.0, host="")
        folder.trial(trial.id).path.mkdir(parents=True)
    done = {"state": "finished", "is_failure": False, "step": 9, "value": 1.5, "reason": None}
    log.record(Record.trial_ended, log.study.trials["s-0"], **done)
    log.close()
    return folder


@pytest.fixture
def array(sweep: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The sweep is a job array; the file is what squeue answers."""
    answer = tmp_path / "answer"
    answer.write_text("7_1 PENDING")
    for name, words in (("sbatch", "exit 0"), ("squeue", squeue_of(answer))):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{words}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    sweep.slurm.mkdir()
    sweep.array.write_text("{}")
    append_submission(sweep.trial("s-1"), Submission(job_id=7, time_s=0.0, task=1))
    yield answer


def told(sweep: SweepFolder, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run([str(sweep.path), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def states(told: dict[str, Any]) -> tuple[str, list[str]]:
    return told["state"], [trial["state"] for trial in told["trials"]]


def hold(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_a_trial_whose_drivers_are_gone_does_not_run(sweep: SweepFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert states(told(sweep, capsys)) == ("stopped", ["finished", "interrupted"])
    held = hold(sweep.trial("s-1").lock)  # on a joined Ray it outlives the sweep's driver
    assert states(told(sweep, capsys)) == ("running", ["finished", "running"])
    os.close(held)
    held = hold(sweep.lock)
    assert states(told(sweep, capsys)) == ("running", ["finished", "running"])
    os.close(held)
    assert run(["--root", str(sweep.path.parent)]) == 0
    assert "sweep s  stopped  2 trials: 1 interrupted, 1 finished" in capsys.readouterr().out


def test_a_task_in_the_queue_waits(sweep: SweepFolder, array: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert states(told(sweep, capsys)) == ("queued", ["finished", "waiting"])
    array.write_text("7_1 RUNNING")
    held = hold(sweep.trial("s-1").lock)
    assert states(told(sweep, capsys)) == ("running", ["finished", "running"])
    os.close(held)
    array.write_text("")
    assert states(told(sweep, capsys)) == ("stopped", ["finished", "interrupted"])


def test_a_sweep_is_told_of_although_slurm_does_not_answer(
    sweep: SweepFolder, array: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array.unlink()
    for words in ([str(sweep.path)], ["--root", str(sweep.path.parent)]):
        with pytest.raises(SlurmError, match="squeue failed"):
            run(words)
        assert "2 trials: 1 running, 1 finished" in capsys.readouterr().out


def test_the_table_as_json_has_the_sweeps_and_jobs_of_the_screen(
    sweep: SweepFolder, array: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = RunFolder(sweep.path.parent / "r")
    append_submission(run_folder, Submission(job_id=8, time_s=0.0))
    array.write_text("7_1 PENDING\n8 RUNNING")
    words = ["--root", str(sweep.path.parent)]
    assert run(words) == run([*words, "--json"]) == 0
    screen, _, text = capsys.readouterr().out.partition("[\n")
    assert "interrupted, job 8" in screen and "sweep s  queued  2 trials: 1 waiting, 1 finished" in screen
    of_run, of_sweep = json.loads(f"[{text}")
    assert (of_run["run_id"], of_run["state"]) == ("r", "interrupted")
    assert of_run["slurm"] == {"job_id": 8, "task": None, "state": "RUNNING"}
    assert (of_sweep["sweep"], states(of_sweep)) == ("s", ("queued", ["finished", "waiting"]))
    assert run(["--root", str(sweep.trials), "--json"]) == 0
    (of_trial,) = [each["slurm"] for each in json.loads(capsys.readouterr().out) if each["slurm"] is not None]
    assert of_trial == {"job_id": 7, "task": 1, "state": "PENDING"}
    asked = array.with_name("asked")
    (array.parent / "bin/squeue").write_text(f"#!/bin/sh\necho >> {asked}\nexit 1\n")
    assert run([*words, "--json"]) == 0
    told = capsys.readouterr()
    assert [(each["run_id"], each.get("slurm")) for each in json.loads(told.out)] == [("r", None), (None, None)]
    assert told.err == "phalanx status: SLURM is not in this: squeue failed: exit code 1\n"
    assert asked.read_text() == "\n"


@pytest.mark.parametrize("verb", [status.run, cancel.run])
def test_a_name_that_no_folder_can_have_is_refused_as_any_unknown_one(
    verb: Callable[[list[str]], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a demo has left runs, those are named
    with pytest.raises(ConfigError, match=r"^run a+ was not found"):
        verb(["a" * 300])
