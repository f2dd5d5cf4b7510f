import fcntl
import os
import subprocess
import sys
import time

import pytest

from launch.logs import run
from launch.slurm.record import Submission, append_submission
from orchestrator.errors import ConfigError
from orchestrator.observe.ledger import Ledger
from orchestrator.runfolder import RunFolder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """Two attempts of two ranks; attempt 3 has been announced, but no rank has printed anything yet."""
    folder = RunFolder(tmp_path / "runs/demo")
    for attempt in (1, 2):
        folder.attempt(attempt).mkdir(parents=True)
        for rank in (0, 1):
            lines = (f"attempt {attempt} rank {rank} line {line}\n" for line in range(5))
            folder.rank_log(attempt, rank).write_text("".join(lines))
    folder.attempt(3).mkdir()
    folder.plan.write_text('{"steps": 10}')
    return folder


def ledger(folder: RunFolder) -> Ledger:
    return Ledger(folder.events, time.time)


def test_the_newest_attempt_s_rank_0(folder, capfdbinary):
    assert run(["demo", "--root", str(folder.path.parent)]) == 0
    told = capfdbinary.readouterr()
    assert told.out.decode() == folder.rank_log(2, 0).read_text()
    assert told.err.decode() == f"==> {folder.rank_log(2, 0)}\n"


def test_a_chosen_rank_attempt_and_tail(folder, capfdbinary):
    assert run([str(folder.path), "--rank", "1", "--attempt", "1", "--tail", "2"]) == 0
    assert capfdbinary.readouterr().out.decode() == "attempt 1 rank 1 line 3\nattempt 1 rank 1 line 4\n"


def test_a_failed_run_shows_the_rank_that_failed_first(folder, capfdbinary):
    events = ledger(folder)
    events.append("rank_died", 2, 4, rank=1)
    events.append("rank_died", 2, 4, rank=0)
    run([str(folder.path)])
    assert capfdbinary.readouterr().out.startswith(b"attempt 2 rank 0")  # it may still go on
    events.append("run_failed", 2, 4)
    run([str(folder.path)])
    assert capfdbinary.readouterr().out.startswith(b"attempt 2 rank 1")
    events.append("run_failed", 2, 4, rank=0)
    run([str(folder.path)])
    assert capfdbinary.readouterr().out.startswith(b"attempt 2 rank 0")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--rank", "7"], "--rank=7: attempt 2 of run demo has ranks 0-1"),
        (["--attempt", "9"], "--attempt=9: run demo has logs of attempts 1-2"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(folder, options, problem):
    with pytest.raises(ConfigError) as refused:
        run([str(folder.path), *options])
    assert str(refused.value) == problem


def test_a_run_that_has_not_started_says_so(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/plan.json").write_text("{}")
    with pytest.raises(ConfigError, match="no logs yet"):
        run([str(tmp_path / "demo")])


def test_following_goes_on_into_the_next_attempt_until_the_run_ends(folder):
    fd = os.open(folder.lock, os.O_CREAT | os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    program = "import sys; from launch.logs import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", program, str(folder.path), "-f", "--tail", "1"]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert follower.stdout.readline() == "attempt 2 rank 0 line 4\n"
    with folder.rank_log(2, 0).open("a") as log:
        log.write("the end of attempt 2\n")
    assert follower.stdout.readline() == "the end of attempt 2\n"
    written = folder.attempt(3) / "being written"
    written.write_text("attempt 3 goes on\n")
    written.rename(folder.rank_log(3, 0))
    assert follower.stdout.readline() == "attempt 3 goes on\n"
    with folder.rank_log(3, 0).open("a") as log:
        log.write("the last words\n")
    os.close(fd)
    rest, said = follower.communicate()
    assert (rest, follower.returncode) == ("the last words\n", 0)
    assert said.splitlines() == [f"==> {folder.rank_log(2, 0)}", f"==> {folder.rank_log(3, 0)}"]


def test_a_job_is_followed_before_its_driver_starts_and_into_its_successor(folder, tmp_path):
    answer = tmp_path / "answer"
    answer.write_text("JobId=7 JobState=RUNNING Reason=None")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "scontrol"):
        (programs / name).write_text(f"#!/bin/sh\ncat {answer}\n")
        (programs / name).chmod(0o755)
    append_submission(folder, Submission(job_id=7, time_s=0.0))
    folder.job_output(7).write_text("looking at the nodes\n")
    program = "import sys; from launch.logs import run; sys.exit(run(sys.argv[1:]))"
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", program, str(folder.path), "--job", "-f"]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert follower.stdout.readline() == "looking at the nodes\n"
    with folder.job_output(7).open("a") as output:
        output.write("Ray is there\n")
    assert follower.stdout.readline() == "Ray is there\n"
    append_submission(folder, Submission(job_id=8, time_s=1.0, follows=True))  # in the queue: it prints nothing yet
    with folder.job_output(7).open("a") as output:
        output.write("goes on in job 8\n")
    assert follower.stdout.readline() == "goes on in job 8\n"
    folder.job_output(8).write_text("the last words\n")
    assert follower.stdout.readline() == "the last words\n"
    (tmp_path / "then").write_text("JobId=8 JobState=COMPLETED Reason=None")
    (tmp_path / "then").rename(answer)
    rest, said = follower.communicate()
    assert (rest, follower.returncode) == ("", 0)
    assert said.splitlines() == [f"==> {folder.job_output(7)}", f"==> {folder.job_output(8)}"]


def test_a_reader_that_went_away_is_no_error(folder):
    folder.rank_log(2, 0).write_text("a line\n" * 200_000)
    program = "import sys; from launch.logs import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", program, str(folder.path)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    writer.stdout.readline()
    writer.stdout.close()
    said = writer.stderr.read()
    assert (writer.wait(), said) == (0, f"==> {folder.rank_log(2, 0)}\n")
    writer.stderr.close()


def test_the_log_may_hold_any_bytes(folder, capfdbinary):
    folder.rank_log(2, 0).write_bytes(b"\xff\xfe\x00 no text\n")
    run([str(folder.path)])
    assert capfdbinary.readouterr().out == b"\xff\xfe\x00 no text\n"
