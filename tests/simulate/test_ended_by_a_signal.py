"""A simulation that is ended by a signal leaves no process and no folder; after SIGKILL the next one sweeps up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from simulated import setting

from orchestrator.simulate.campaign import SCRATCH_PREFIX, predict, scratch_parent

WORDS = ["simulate", "experiment=llama_8b_h100x64", "--gpus", "64", "--days", "0", "--schedules", "100000"]


@pytest.fixture
def simulation() -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen([sys.executable, "-m", "launch.cli", *WORDS], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def folders_of(pids: list[int]) -> list[Path]:
    return [path for pid in pids for path in Path(scratch_parent()).glob(f"{SCRATCH_PREFIX}{pid}-*")]


def workers_at_work(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """Once each of two worker processes has a folder."""
    while True:
        assert process.poll() is None
        workers = psutil.Process(process.pid).children()
        if len(workers) > 1 and all(folders_of([worker.pid]) for worker in workers):
            return workers
        time.sleep(0.01)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="on one core there are no workers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_can_be_heard_leaves_nothing(simulation: "subprocess.Popen[bytes]", number: int) -> None:
    workers = workers_at_work(simulation)
    simulation.send_signal(number)
    assert simulation.wait() == 128 + number
    psutil.wait_procs(workers)
    assert folders_of([worker.pid for worker in workers]) == []


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="on one core there are no workers")
def test_after_sigkill_the_workers_end_and_the_next_simulation_sweeps_up(
    simulation: "subprocess.Popen[bytes]",
) -> None:
    workers = workers_at_work(simulation)
    simulation.kill()
    psutil.wait_procs(workers)
    predict(setting(), days=0.01, seed=1)
    assert folders_of([worker.pid for worker in workers]) == []
