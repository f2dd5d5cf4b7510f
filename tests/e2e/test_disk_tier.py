"""The disk tier: everything but the nodes' disks dies, and the run goes on from what they have."""

from pathlib import Path

import psutil
import pytest
from comparing import assert_bit_equal
from left_behind import command_of, is_alive
from moments import hold_at_step
from typed import Driver, Run, Typist, wait_for

pytestmark = pytest.mark.real

EVERY = 5


def disk_steps(folder: Path) -> list[int]:
    return sorted(int(path.parent.name[5:]) for path in folder.glob("*/step_*/COMMITTED.json"))


def kill(driver: Driver) -> None:
    """Returns once its agents and their ranks have ended, too: until then they may still write to their disks."""
    children = psutil.Process(driver.process.pid).children(recursive=True)
    agents = [child for child in children if "AgentActor" in command_of(child.pid)]
    assert agents
    pids = [each.pid for agent in agents for each in (agent, *agent.children(recursive=True))]
    driver.process.kill()
    driver.wait()
    wait_for("the end of agents and ranks", lambda: not any(map(is_alive, pids)))


def test_a_killed_driver_costs_the_steps_since_the_disks_interval(
    local_typist: Typist, run: Run, reference: Run, tmp_path: Path
) -> None:
    """checkpoint.url has nothing yet when everything dies, the agents with the driver's own Ray, and later something
    older and damage on the disk."""
    typist = local_typist
    disk = tmp_path / "scratch"
    words = [f"checkpoint.local_dir={disk}", f"checkpoint.local_every_steps={EVERY}", "checkpoint.every_steps=0"]
    driver = typist.train(run, *words)
    driver.wait_for("a checkpoint on the disk", lambda: disk_steps(disk)[-1:] >= [10])
    hold_at_step(driver, run, 1, 17)
    kill(driver)
    assert run.committed_steps() == []
    steps = disk_steps(disk)
    done = max(run.rows())

    second = typist.train(run, *words)
    second.wait_for("two newer ones", lambda: disk_steps(disk)[:1] > [steps[-1]])
    hold_at_step(second, run, 1, 37)
    kill(second)
    started = run.events("attempt_started")[1]
    assert (started["source"], started["resume_step"]) == ("disk", steps[-1])
    assert started["steps_lost"] == done - steps[-1]
    assert started["checkpoint"] == f"{disk}/{run.folder.path.name}/step_{steps[-1]:08d}"
    (recovered,) = run.events("recovered")
    assert (recovered["source"], recovered["steps_lost"]) == ("disk", done - steps[-1])
    kept = disk_steps(disk)
    assert len(kept) == 2, "checkpoint.local_keep_last"

    payload = max((disk / run.folder.path.name / f"step_{kept[-1]:08d}").glob("*.safetensors"))
    data = bytearray(payload.read_bytes())
    data[len(data) // 2] ^= 1
    payload.write_bytes(data)
    typist.train(run, *words, "fault.max_restarts=3").finish()
    (rejected,) = run.events("checkpoint_rejected")
    assert (rejected["step"], f"{payload} is damaged" in rejected["message"]) == (kept[-1], True)
    started = run.events("attempt_started")[2]
    assert (started["source"], started["resume_step"]) == ("disk", kept[0])
    assert_bit_equal(run, reference)
    assert run.committed_steps() == [60]
    assert list(disk.rglob("*.safetensors")) == [], "a finished run leaves nothing on the nodes' disks"
    told = run.events("snapshot")
    assert any(event["tier"] == "disk" and event.get("pruned") for event in told), "deletions are logged"
    (memory,) = [event for event in told if event["tier"] == "memory"]
    assert 0.9 * memory["planned_bytes"] < memory["bytes"] <= 1.02 * memory["planned_bytes"]
