"""Hanging ranks: found, named, shown with their stacks, and the run is the one that nothing disturbed."""

import os
import signal
from pathlib import Path

import psutil
import pytest
from comparing import assert_bit_equal
from left_behind import command_of, listening_ports
from moments import hold_at_step, let_go
from typed import Run, Typist

pytestmark = pytest.mark.real

STUCK = Path(__file__).parent.parent / "rank" / "stuck"


RAYS_AGENT_PORT = 52365
"""Every Ray's usual one: who finds it taken waits for it for seconds."""


def assert_ray_is_for_one_run(driver_pid: int) -> None:
    """Beside another one it starts as fast as alone, and has no process that nobody needs."""
    children = psutil.Process(driver_pid).children(recursive=True)
    words = " ".join(command_of(child.pid) for child in children)
    assert "raylet" in words
    assert "log_monitor" not in words
    assert "autoscaler" not in words
    assert "dashboard/dashboard.py" not in words
    ports = listening_ports(child.pid for child in children)
    assert ports
    assert RAYS_AGENT_PORT not in ports


def test_a_stopped_rank_and_one_that_holds_the_gil(local_typist: Typist, run: Run, reference: Run) -> None:
    path = os.pathsep.join(filter(None, [str(STUCK), local_typist.environment.get("PYTHONPATH")]))
    local_typist.environment = {**local_typist.environment, "PYTHONPATH": path}
    driver = local_typist.train(run, "fault.hang_constant_s=1")
    hangs = [(1, 1, 8, signal.SIGSTOP), (2, 0, 30, signal.SIGUSR1)]
    for attempt, rank, step, number in hangs:
        driver.wait_for(f"attempt {attempt}", lambda attempt=attempt: run.newest_attempt() == attempt)
        assert_ray_is_for_one_run(driver.process.pid)
        pid = hold_at_step(driver, run, rank, step).pid
        if number != signal.SIGSTOP:
            os.kill(pid, number)
            let_go(pid)
    driver.finish()

    found = run.events("hang_detected")
    assert [(event["attempt"], event["rank"]) for event in found] == [(1, 1), (2, 0)]
    assert "stopped by a signal (SIGSTOP)" in found[0]["message"]
    assert all(event["seconds"] > 1 and event["phase"] for event in found)
    assert run.events("rank_died", "run_failed") == []
    assert [event["source"] for event in run.events("recovered")] == ["memory", "memory"]
    assert all(f"hangs: {event['message']}" in driver.output for event in found)
    assert "does not answer" in run.folder.rank_log(1, 1).read_text()
    assert "(most recent call first)" in run.folder.rank_log(1, 0).read_text()
    assert "in hold_the_gil" in run.folder.rank_log(2, 0).read_text()
    assert "(most recent call first)" in run.folder.rank_log(2, 1).read_text()
    assert_bit_equal(run, reference)
