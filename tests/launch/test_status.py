import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.slurm.record import Submission, append_submission
from launch.status import run
from orchestrator.errors import ConfigError
from orchestrator.observe.ledger import Ledger
from orchestrator.observe.metrics import MetricsLog, StepRow
from orchestrator.runfolder import RunFolder


def step_row(step: int, attempt: int = 1) -> StepRow:
    return StepRow(
        step=step,
        attempt=attempt,
        loss=2.5,
        lr=1e-3,
        grad_norm=1.0,
        tokens=1024,
        tokens_per_s=2048.0,
        step_s=0.5,
        data_s=0.01,
        batch_digest="0" * 16,
    )


@pytest.fixture
def runs(tmp_path) -> Path:
    """Three runs: one running at step 40 of 100 after a restart, one finished, one failed."""
    root = tmp_path / "runs"
    for started_s, name, end in (
        (30.0, "going", None),
        (20.0, "done", "run_finished"),
        (10.0, "lost", "run_failed"),
    ):
        folder = RunFolder(root / name)
        ledger = Ledger(folder.events, lambda at=started_s: at)
        folder.plan.write_text(json.dumps({"steps": 100}))
        folder.config.write_text("{}\n")
        ledger.append("run_started", 1, None)
        ledger.append("attempt_started", 1, None)
        if end is None:
            ledger.append("checkpoint_committed", 1, 20, path="checkpoints/step_00000020")
            ledger.append("rank_died", 1, 27, rank=1, node="here", signal=9)
            ledger.append("attempt_started", 2, None, resume_step=20, steps_lost=7)
            ledger.append("recovered", 2, 21, downtime_s=1.5, steps_lost=7, source="disk")
        else:
            ledger.append(end, 1, 40, digest="rank 0 on here failed first\nnext: mend it")
        log = MetricsLog(folder.metrics)
        for step in range(1, 41):
            log.append(step_row(step))
    return root


@pytest.fixture
def driver(runs):
    """The lock that the live driver of `going` holds."""
    fd = os.open(RunFolder(runs / "going").lock, os.O_CREAT | os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield
    os.close(fd)


def test_the_table(runs, driver, capsys):
    assert run(["--root", str(runs)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["ID", "STATE", "STEP/TOTAL", "LOSS", "TOK/S", "RESTARTS", "ETA", "AGE", "PATH"]
    assert lines[1][:7] == ["going", "running", "40/100", "2.5000", "2,048", "1", "30s"]
    assert [line[:2] for line in lines[1:]] == [
        ["going", "running"],
        ["done", "finished"],
        ["lost", "failed"],
    ]
    assert lines[2][6] == "-"
    assert [line[-1] for line in lines[1:]] == [str(runs / name) for name in ("going", "done", "lost")]


def test_the_table_as_json_is_what_the_table_says(runs, driver, capsys):
    assert run(["--root", str(runs), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(each["run_id"], each["state"], each["step"], each["steps"]) for each in told] == [
        ("going", "running", 40, 100),
        ("done", "finished", 40, 100),
        ("lost", "failed", 40, 100),
    ]


def test_one_run(runs, driver, capsys):
    (runs / "going/wandb/offline-run-20260101_000000-going").mkdir(parents=True)
    assert run(["going", "--root", str(runs)]) == 0
    text = capsys.readouterr().out
    for line in (
        "state       running",
        "step        40 of 100",
        "time left   30s",
        "attempts    2 (1 restart, 1.50s lost)",
        "checkpoint  checkpoints/step_00000020",
        f"W&B         offline, 1 segment; to upload: phalanx sync {runs}/going",
        f"next        phalanx logs -f {runs}/going",
    ):
        assert line in text.splitlines()
    assert "ago  rank 1 on here was killed by signal 9 (SIGKILL) after step 27" in text
    assert "ago  restarting as attempt 2 from step 20, 7 steps are repeated" in text


def test_where_the_time_of_a_run_went(runs, capsys):
    assert run(["done", "--root", str(runs)]) == 0
    assert "goodput     98.0% of 20s; data wait 0.40s" in capsys.readouterr().out.splitlines()


def test_a_run_without_a_driver_and_without_an_end_was_interrupted(runs, capsys):
    assert run([str(runs / "going"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["restarts"], told["wandb"]) == ("interrupted", 1, None)
    assert told["events"][-1]["event"] == "recovered"
    spent_s = told["goodput"]["spent_s"]
    assert sum(spent_s.values()) == pytest.approx(told["goodput"]["wall_s"])
    assert told["goodput"]["ratio"] == pytest.approx(spent_s["productive"] / told["goodput"]["wall_s"])


def test_a_failed_run_shows_its_digest(runs, capsys):
    assert run(["lost", "--root", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "rank 0 on here failed first",
        "next: mend it",
        f"next        phalanx logs {runs}/lost",
    ]


def test_looking_changes_no_file(runs, driver, capsys):
    def files():
        return {path: path.read_bytes() for path in sorted(runs.rglob("*")) if path.is_file()}

    before = files()
    run(["--root", str(runs)])
    run(["going", "--root", str(runs)])
    assert files() == before


def test_no_runs_says_how_to_start_one(tmp_path, capsys):
    assert run(["--root", str(tmp_path / "none")]) == 0
    assert "phalanx train" in capsys.readouterr().out
    assert run(["--root", str(tmp_path / "none"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_an_unknown_run_is_refused(runs):
    with pytest.raises(ConfigError, match="gong"):
        run(["gong", "--root", str(runs)])


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("echo 'JobId=7 JobState=FROBNICATED Reason=None'", "job 7 is FROBNICATED, which phalanx does not know"),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "scontrol does not answer"),
    ],
)
def test_what_slurm_does_not_say_is_an_error_after_what_the_run_says(runs: Path, answer: str, complaint: str):
    """Never an end that was not there."""
    program = runs.parent / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    append_submission(RunFolder(runs / "lost"), Submission(job_id=7, time_s=0.0))
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    for more in ([], ["--json"]):
        command = [sys.executable, "-m", "launch.cli", "status", "lost", "--root", str(runs), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 1
        assert "rank 0 on here failed first" in done.stdout
        assert "SLURM" not in done.stdout
        assert complaint in done.stderr


def test_an_interrupted_run_names_the_command_that_goes_on(runs, capsys, monkeypatch):
    folder = RunFolder(runs / "going")
    words = ["phalanx", "train", "experiment=quickstart", "data.source=a b.txt"]
    folder.env.write_text(json.dumps({"command": words, "folder": str(runs)}))
    monkeypatch.chdir(runs)
    assert run(["going", "--root", str(runs)]) == 0
    assert "next        phalanx train experiment=quickstart 'data.source=a b.txt'\n" in capsys.readouterr().out
    monkeypatch.chdir(runs.parent)
    run(["going", "--root", str(runs)])
    assert f"next        cd {runs} && phalanx train experiment=quickstart" in capsys.readouterr().out
    for other in (["phalanx", "rerun", "first"], ["phalanx", "train", "-m", "optim.lr=1,2"], "?", None):
        folder.env.write_text(json.dumps({"command": other, "folder": str(runs)}))
        run(["going", "--root", str(runs)])
        assert "next        the command that started it goes on from its checkpoint" in capsys.readouterr().out
