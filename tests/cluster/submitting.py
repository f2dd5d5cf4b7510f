"""`phalanx submit` on a virtual cluster as a person types it, and the run folder that comes of it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from launch.virtual.cluster import VirtualCluster
from orchestrator.observe.ledger import read_events
from orchestrator.observe.metrics import StepRow, surviving_rows
from orchestrator.runfolder import RunFolder

from .jobs import ENDED, job_fields

T = TypeVar("T")

WORDS = [
    "cluster=slurm",
    "model=tiny",
    "train.seq_len=64",
    "train.global_batch_size=16",
    "train.micro_batch_size=2",
    "train.steps=40",
    "optim.lr=1e-3",
    "optim.warmup_steps=5",
    "checkpoint.every_steps=7",
    "parallel.zero_stage=2",
    "cluster.num_workers=2",
    "cluster.device=cpu",
    "cluster.slurm.memory_per_node=2500M",
    "cluster.slurm.time_limit_min=30",
    "cluster.start_timeout_s=600",
    "cluster.slurm.preflight.enabled=false",  # seconds of each job's start; test_preflight.py has it
    "tracking.wandb.mode=disabled",
]
SLOW = ["train.steps=100000", "optim.schedule_steps=40"]
"""A run that does not end by itself."""
GIVE_UP_S = 1800.0
"""A safety net: nothing is asserted about how long things take."""
POLL_S = 0.1
LATER = "cluster.slurm.extra={begin:'now+1hour'}"
"""A job that only waits."""


def phalanx(cluster: VirtualCluster, *words: str) -> "subprocess.CompletedProcess[str]":
    """Typed on the head, which is the login node."""
    return cluster.run(cluster.head, sys.executable, "-m", "launch.cli", *words, check=False)


def killed_by_sbatch(cluster: VirtualCluster, *words: str) -> None:
    """`phalanx WORDS`, killed the moment it has started sbatch, which goes on and submits the job."""
    program = cluster.shared / "deadly/sbatch"
    program.parent.mkdir(exist_ok=True)
    real = shutil.which("sbatch")
    program.write_text(f'#!/bin/sh\ncase "$*" in *--test-only*) ;; *) kill -9 $PPID;; esac\nexec {real} "$@"\n')
    program.chmod(0o755)
    path = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = cluster.run(cluster.head, sys.executable, "-m", "launch.cli", *words, env=path, check=False)
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stdout + done.stderr


def wait_until(what: str, look: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + GIVE_UP_S
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what} did not come in {GIVE_UP_S:g} s"
        time.sleep(POLL_S)
    return found


@contextmanager
def held(cluster: VirtualCluster, folder: RunFolder, attempt: int, rank: int) -> Iterator[None]:
    """A rank stands still meanwhile, and with it the run: it can't end before something has come of what is done.
    For a run whose `fault.hang_constant_s` allows it."""
    log = folder.rank_log(attempt, rank).read_text()
    found = re.search(rf" on (\S+): attempt {attempt}, pid (\d+)\n", log)
    assert found is not None, log
    host, pid = found[1], found[2]
    cluster.run(host, "kill", "-STOP", pid)
    try:
        yield
    finally:
        cluster.run(host, "kill", "-CONT", pid, check=False)


def prepare_data(cluster: VirtualCluster) -> Path:
    """Two packages of the standard library, on the cluster's shared folder."""
    library = Path(json.__file__).parent.parent
    path = cluster.shared / "data"
    words = [f"data.source=[{library}/json/*.py,{library}/email/*.py]", f"data.path={path}", "data.vocab_size=400"]
    command = [sys.executable, "-m", "launch.cli", "prepare", "model=tiny", "data.validation_fraction=0.1", *words]
    subprocess.run(command, check=True, capture_output=True)
    return path


def local_rows(data: Path, root: Path, *words: str) -> dict[int, StepRow]:
    """The run that nothing disturbed, on this machine and without SLURM."""
    common = [word for word in WORDS if not word.startswith("cluster.slurm") and word != "cluster=slurm"]
    places = [f"data.path={data}", f"run.root={root}", "run.id=local"]
    command = [sys.executable, "-m", "launch.cli", "train", *common, *words, *places]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return surviving_rows(root / "local/metrics.jsonl")


def learned(rows: dict[int, StepRow]) -> list[tuple[object, ...]]:
    """What each step did: its data, loss, gradient norm and learning rate."""
    return [(row.step, row.batch_digest, row.loss, row.grad_norm, row.lr) for row in rows.values()]


class SubmittedRun:
    """One run under `shared/runs`, submitted or to be submitted."""

    def __init__(self, cluster: VirtualCluster, data: Path, run_id: str, *words: str) -> None:
        self.cluster = cluster
        self.folder = RunFolder(cluster.shared / "runs" / run_id)
        places = [f"data.path={data}", f"run.root={cluster.shared}/runs", f"run.id={run_id}"]
        self.words = [*WORDS, *places, *words]
        self.job = ""

    def submit(self, *words: str) -> str:
        """The job's id."""
        done = phalanx(self.cluster, "submit", *self.words, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        self.job = done.stdout.splitlines()[0].removeprefix("Submitted batch job ")
        assert self.job.isdecimal(), done.stdout
        return self.job

    def events(self, *names: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.folder.events) if not names or event["event"] in names]

    def rows(self) -> dict[int, StepRow]:
        return surviving_rows(self.folder.metrics) if self.folder.metrics.exists() else {}

    def newest_attempt(self) -> int:
        return max((event["attempt"] for event in self.events("attempt_started")), default=0)

    def wait_for_step(self, step: int, attempt: int = 1) -> None:
        """Until `attempt` or a later one has done `step` or a later one."""

        def look() -> bool:
            rows = self.rows()
            assert self.fields()["JobState"] not in ENDED, self.fields() | {"output": self.output()}
            return any(row.step >= step and row.attempt >= attempt for row in rows.values())

        wait_until(f"step {step} of attempt {attempt}", look)

    def notify(self) -> None:
        """SIGUSR1 to the batch script, as `--signal` sends it before a time limit."""
        self.cluster.run(self.cluster.head, "scancel", "--batch", "--signal=USR1", self.job)

    def preempt(self) -> str:
        """A short job of a higher partition takes every node; its id."""
        size = f"--nodes={len(self.cluster.nodes)}"
        words = ("sbatch", "--parsable", "--partition=high", size, "--exclusive")
        return self.cluster.run(self.cluster.head, *words, stdin="#!/bin/sh\ntrue\n").stdout.strip()

    def wandb_ids(self) -> set[str]:
        """Of all segments that W&B has of the run."""
        return {path.name.rpartition("-")[2] for path in self.folder.wandb.glob("*run-*") if path.is_dir()}

    def fields(self) -> dict[str, str]:
        return job_fields(self.cluster, self.job)

    def wait_for_state(self, *states: str) -> dict[str, str]:
        """Until the job is in one of `states`, or has ended where none is named."""

        def look() -> dict[str, str] | None:
            fields = self.fields()
            return fields if fields["JobState"] in (states or ENDED) else None

        return wait_until(f"job {self.job} in {states or 'its end'}", look)

    def output(self) -> str:
        path = self.folder.job_output(self.job)
        return path.read_text() if path.exists() else ""


def left_on(cluster: VirtualCluster, node: str) -> list[str]:
    """Processes, folders and shared memory of jobs on a node."""
    processes = cluster.run(node, "ps", "-e", "-o", "args").stdout.splitlines()
    ours = [
        line
        for line in processes
        if "launch.virtual" not in line
        and any(word in line for word in ("launch.slurm", "launch.hosts", "launch.cli", "ray", "zygote"))
    ]
    files = cluster.run(node, "ls", "-A", "/tmp", "/dev/shm").stdout.split()
    kept = {Path(path).parts[2] for path in cluster.spec.keep} | {"/tmp:", "/dev/shm:"}
    ports = cluster.run(node, "cat", "/proc/net/tcp").stdout.splitlines()[1:]
    listening = {int(line.split()[1].split(":")[1], 16) for line in ports if line.split()[3] == "0A"}
    in_our_range = [f"port {port}" for port in listening if 20_000 <= port < 32_000]
    return [*ours, *(name for name in files if name not in kept), *in_our_range]
