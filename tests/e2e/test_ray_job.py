"""`ray job submit -- phalanx train` on a real head with its job server: stopped, gone on with, its machine lost."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from typed import PHALANX, Run, wait_for
from typists import TRAIN_WORDS, clean_environment

from orchestrator.observe.state import RunState, run_state

pytestmark = pytest.mark.real

RAY = str(Path(sys.executable).with_name("ray"))
LONG = ["train.steps=100000", "optim.schedule_steps=60"]
"""A run that does not end by itself."""


@dataclass
class Head:
    """A Ray head as a cluster's owner starts it: `ray start --head --block`."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str]

    def job(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([RAY, "job", *words], env=self.environment, capture_output=True, text=True, check=False)

    def submit(self, run: Run, data: Path, *words: str) -> str:
        """The job's id."""
        train = ["phalanx", "train", *TRAIN_WORDS, f"data.path={data}", f"run.root={run.root}", "cluster=ray", *words]
        submission = f"phalanx-{secrets.token_hex(4)}"
        done = self.job("submit", "--no-wait", "--submission-id", submission, "--", *train)
        assert done.returncode == 0, done.stdout + done.stderr
        return submission

    def wait_for_step(self, run: Run, job: str, step: int, attempt: int) -> None:
        def look() -> bool:
            row = run.newest_row()
            if row is None and "FAILED" in self.job("status", job).stdout:
                raise AssertionError(self.job("logs", job).stdout)
            return row is not None and row.step >= step and row.attempt >= attempt

        wait_for(f"step {step}", look)

    def wait_for_status(self, job: str, status: str) -> None:
        wait_for(f"{job} {status}", lambda: f"'{job}' {status}" in self.job("status", job).stdout)


@pytest.fixture
def head(nothing_left: None) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="phx-job-", dir="/tmp"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = clean_environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "600",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "600",
        "PATH": f"{Path(PHALANX).parent}:/usr/bin:/bin",
    }
    words = ["--head", "--block", "--port=0", "--dashboard-port=0", "--num-cpus=4", f"--temp-dir={folder}/r"]
    words += [f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
    words += ["--object-store-memory=80000000", "--disable-usage-stats"]
    output = folder / "output"
    with output.open("wb") as out:
        process = subprocess.Popen(
            [RAY, "start", *words], env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder
        )
    try:
        found = wait_for(
            "Ray's head", lambda: re.search(r"RAY_API_SERVER_ADDRESS='(http://\S+)'", output.read_text()), process
        )
        environment["RAY_API_SERVER_ADDRESS"] = found[1]
        head = Head(process, environment)
        # The job server answers before the node's agent, which takes the jobs, has told it that it is there.
        wait_for("a job that is taken", lambda: not head.job("submit", "--no-wait", "--", "true").returncode, process)
        yield head
    finally:
        end(process)
        shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the head, whatever the test left running."""
    if process.poll() is None:
        ours = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        for pid in ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def test_a_job_is_stopped_gone_on_with_and_taken_away(head: Head, data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "runs")
    refused = head.job("submit", "--", "phalanx", "train", *TRAIN_WORDS, f"data.path={data}", "checkpoint.url=saved")
    assert refused.returncode != 0
    for place in ("run.root=runs", "checkpoint.url=saved"):
        assert f"{place} is relative, and a Ray job runs in a folder of its node that Ray deletes" in refused.stdout
    assert not run.has_folder

    # `ray job stop`: SIGTERM to the driver and all that descends from it.
    job = head.submit(run, data, *LONG)
    head.wait_for_step(run, job, 5, 1)
    assert head.job("stop", "--no-wait", job).returncode == 0
    head.wait_for_status(job, "was stopped")
    assert run_state(run.folder).state is RunState.preempted
    saved = run.committed_steps()[-1]
    assert saved == max(run.rows())

    # The same words again go on with it. Then the head's machine is taken away, as a pod is: Ray drains its node.
    job = head.submit(run, data, *LONG)
    head.wait_for_step(run, job, saved + 3, 2)
    head.process.send_signal(signal.SIGTERM)
    head.process.wait()
    assert [event["attempt"] for event in run.events("attempt_started")] == [1, 2]
    assert run_state(run.folder).state is RunState.preempted
    assert run.committed_steps()[-1] == max(run.rows()) > saved
    assert sorted(run.rows()) == list(range(1, max(run.rows()) + 1))
