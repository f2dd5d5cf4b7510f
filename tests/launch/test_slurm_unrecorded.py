"""Jobs of which only SLURM knows: `submit` was killed before it had written them down. Scripts play SLURM."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from queue_file import squeue_of

from launch import cancel, logs, status
from launch.job.batch import Allocation, record_itself
from launch.slurm.finding import by_script, made_of
from launch.slurm.jobstate import JobState, QueuedJob
from launch.slurm.record import Submission, append_submission, submissions
from launch.submit import alone, check_not_queued
from launch.sweep import recipe_of
from launch.sweep_array import submit
from orchestrator import holding
from orchestrator.errors import ConfigError
from orchestrator.runfolder import RunFolder
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.studylog import StudyLog, locked

SBATCH = """
case "$*" in *--test-only*) exit 0;; esac
for script; do :; done
kill -KILL $PPID
until [ -e {gate} ]; do sleep 0.05; done
for job in {jobs}; do echo "$job PENDING $script" >> {queue}; done
"""
"""Its parent is gone before SLURM has the job, which it has once the gate is there."""
SCONTROL = """
for job; do :; done
grep -q "^$job " {queue} || {{ echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }}
echo "JobId=${{job%_*}} JobState=PENDING Reason=Resources Restarts=0"
"""
SCANCEL = """
grep -v "^$1 " {queue} > {queue}.new
mv {queue}.new {queue}
"""
PROGRAM = """
import sys
from pathlib import Path
from launch.compose import compose
from launch.submit import alone, hand_in, spec_of, write
from orchestrator.runfolder import RunFolder
folder, words = RunFolder(Path(sys.argv[1])), ["experiment=tiny_test", "cluster=slurm"]
config = compose(words).config
with alone(folder) as lock:
    write(config, spec_of(config, words, "cpu", folder), "cpu", folder)
    hand_in(folder, lock)
"""
SWEPT = ["experiment=tiny_test", "cluster=slurm", "optim.lr=1e-3,2e-3"]
SWEPT += ["run.root=/home/nobody/runs", "data.path=/home/nobody/data"]
SWEEP_PROGRAM = """
import json
import sys
from pathlib import Path
from launch.sweep import recipe_of
from launch.sweep_array import submit
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.studylog import locked
folder, words = SweepFolder(Path(sys.argv[1])), sys.argv[2:]
with locked(folder) as lock:
    submit(folder, *recipe_of(folder, words), words, lock)
"""


class Slurm:
    """`queue` is what squeue says."""

    def __init__(self, path: Path, *jobs: str) -> None:
        self.queue, self.gate = path / "queue", path / "gate"
        self.queue.touch()
        (path / "bin").mkdir()
        filled = {
            name: text.format(queue=self.queue, gate=self.gate, jobs=" ".join(jobs))
            for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("scancel", SCANCEL))
        }
        sinfo = "echo 'main|main*|3|8|6000|(null)|infinite'"
        for name, text in {**filled, "squeue": squeue_of(self.queue), "sinfo": sinfo}.items():
            (path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (path / "bin" / name).chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    made = Slurm(tmp_path, "12", "12_0", "12_1")
    yield made
    made.gate.touch()


def test_a_job_whose_submit_was_killed_is_found_and_not_submitted_twice(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "my runs/first")
    killed = subprocess.run([sys.executable, "-c", PROGRAM, str(folder.path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    refused = pytest.raises(ConfigError, match=r"^first is being submitted already")
    with refused, alone(folder):  # sbatch still asks SLURM
        pass
    slurm.gate.touch()
    with holding.held(folder.slurm / "submit.lock", wait_s=math.inf):
        slurm.queue.write_text(slurm.queue.read_text().splitlines()[0] + "\n")
    with alone(folder), pytest.raises(ConfigError, match=r"^first is already job 12, which is PENDING") as refusal:
        check_not_queued(folder)
    assert str(refusal.value).endswith(f"or end it with phalanx cancel '{folder.path}'")
    root = str(folder.path.parent)
    assert status.run(["--root", root]) == status.run(["first", "--root", root]) == 0
    said = capsys.readouterr().out
    assert "queued, job 12" in said and "SLURM       job 12 PENDING (Resources)" in said
    status.run(["first", "--root", root, "--json"])
    assert json.loads(capsys.readouterr().out)["slurm"]["job_id"] == 12
    with pytest.raises(ConfigError, match=r"^the job of run first has not started; see phalanx status '"):
        logs.run(["first", "--root", root, "--job"])
    assert cancel.run(["first", "--root", root]) == 0
    assert capsys.readouterr().out == "job 12 of first is cancelled (it was PENDING)\n"
    assert slurm.queue.read_text() == ""
    with pytest.raises(ConfigError, match="run first is not running"):
        cancel.run(["first", "--root", root])
    with alone(folder):
        check_not_queued(folder)


def test_another_run_s_job_is_not_taken_for_it(tmp_path: Path, slurm: Slurm) -> None:
    folder = RunFolder(tmp_path / "runs/first")
    folder.slurm.mkdir(parents=True)
    folder.job_script.touch()
    append_submission(folder, Submission(job_id=7, time_s=0.0))
    another = f"{tmp_path}/runs/second/slurm/job.sbatch"
    slurm.queue.write_text(f"11 RUNNING\n12 PENDING {another} one line\n of arguments,\n\nanother\n")
    check_not_queued(folder)
    slurm.queue.write_text(f"12 PENDING {tmp_path}/runs/../runs/first/slurm/job.sbatch\n")
    with pytest.raises(ConfigError, match="already job 12"):
        check_not_queued(folder)


def test_a_path_from_elsewhere_is_not_taken_for_one_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two checkouts in which the same sweep is typed have the same relative paths."""
    monkeypatch.chdir(tmp_path)
    script = Path("runs/s/slurm/array.sbatch")
    texts = (str(script), f"./{script}", str(tmp_path / "runs/../" / script), f"/{script}")
    queue = {f"{job}_0": QueuedJob(JobState.PENDING, text) for job, text in enumerate(texts)}
    assert made_of(script, by_script(queue)) == {"2_0": JobState.PENDING}


def test_a_job_writes_itself_down_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs/first")
    for slurm_id, job_id, task in (("12", 12, None), ("13_4", 19, 4)):
        allocation = Allocation(job_id=job_id, slurm_id=slurm_id, task=task, restarts=0, hosts=["v1"])
        record_itself(folder, allocation)
        record_itself(folder, allocation)
        append_submission(folder, Submission(job_id=int(slurm_id.split("_")[0]), time_s=0.0, task=task))
    assert [submission.slurm_id for submission in submissions(folder)] == ["12", "13_4"]
    assert len(folder.jobs.read_text().splitlines()) == 4


def test_a_job_array_whose_sweep_was_killed_is_taken_up(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = SweepFolder(Path("runs/s"))  # as from the default run.root
    killed = subprocess.run([sys.executable, "-c", SWEEP_PROGRAM, str(folder.path), *SWEPT], check=False)
    assert killed.returncode == -signal.SIGKILL
    slurm.gate.touch()
    with locked(folder, wait_s=math.inf) as lock:
        lines = slurm.queue.read_text().splitlines()
        slurm.queue.write_text("\n".join(lines[1:]) + "\n")
        folder.description.write_text(json.dumps({"metric": "loss"}))
        submit(folder, *recipe_of(folder, SWEPT), SWEPT, lock)
        assert "nothing to submit: 2 trials: 2 running" in capsys.readouterr().out
    jobs = {submission.slurm_id for n in folder.trials.iterdir() for submission in submissions(RunFolder(n))}
    assert jobs == {"12_0", "12_1"}
    assert cancel.run([str(folder.path)]) == 0
    assert slurm.queue.read_text() == ""


def test_tasks_of_which_the_study_knows_nothing_are_shown_and_cancelled(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = SweepFolder(tmp_path / "runs/s")
    folder.slurm.mkdir(parents=True)
    folder.description.write_text(json.dumps({"metric": "loss"}))
    folder.array.write_text(json.dumps({"words": SWEPT, "tasks": {"0": "s-0", "1": "s-1"}}))
    log = StudyLog(folder)
    for trial in ("s-0", "s-1"):
        log.add(trial, {"optim.lr": trial})
    log.close()
    script = folder.array_script
    slurm.queue.write_text(f"12_0 CONFIGURING {script}\n12_1 PENDING {script}\n12_2 CANCELLED {script}\n")
    assert status.run([str(folder.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "queued"
    assert cancel.run([str(folder.path)]) == 0
    told, cancelled = capsys.readouterr().out.splitlines()
    assert told.startswith("job 12_0 of s was told to save at the next step boundary and to leave")
    assert cancelled == "job 12_1 of s is cancelled (it was PENDING)"
    assert cancel.run([str(folder.path), "--now"]) == 0
    assert capsys.readouterr().out == "job 12_0 of s is cancelled (it was CONFIGURING)\n"
    assert status.run([str(folder.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "stopped"


def test_a_number_that_was_given_away_is_not_signalled(tmp_path: Path) -> None:
    """An sbatch that outlived its `sweep` holds the lock on, signed by a process that is no more."""
    folder = SweepFolder(tmp_path / "runs/s")
    folder.path.mkdir(parents=True)
    folder.description.write_text(json.dumps({"metric": "loss"}))
    program = "import sys; from pathlib import Path; from orchestrator import holding\n"
    program += "with holding.held(Path(sys.argv[1])): print(flush=True); input()"
    words = [sys.executable, "-c", program, str(folder.lock)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        assert cancel.run([str(folder.path)]) == 0
        assert driver.wait() == -signal.SIGTERM
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other, holding.held(folder.lock):
        folder.lock.write_text(folder.lock.read_text().replace(str(os.getpid()), str(other.pid)))
        with pytest.raises(ConfigError, match=r"^who started sweep s \(pid \d+\) is gone"):
            cancel.run([str(folder.path)])
        assert other.poll() is None


def test_a_task_that_has_written_itself_down_shows_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = SweepFolder(tmp_path / "runs/s")
    folder.slurm.mkdir(parents=True)
    folder.array.write_text(json.dumps({"words": SWEPT, "tasks": {"0": "s-0"}}))
    folder.task_output("12_0").write_text("on its way\n")
    task = os.environ | {"SLURM_JOB_ID": "13", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"}
    for _ in range(2):  # it is requeued
        subprocess.run([sys.executable, "-m", "launch.job.arraytask", str(folder.path)], env=task, check=False)
    append_submission(folder.trial("s-0"), Submission(job_id=12, time_s=0.0, task=0))
    folder.trial("s-0").plan.write_text("{}")
    logs.run([str(folder.trial("s-0").path), "--job"])
    assert (capsys.readouterr().out, folder.log("s-0").read_text()) == ("on its way\n", "on its way\n")
    assert [link.name for link in folder.log("s-0").parent.iterdir()] == ["s-0.log"]
