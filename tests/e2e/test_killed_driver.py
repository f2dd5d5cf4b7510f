"""The driver dies on a Ray that it joined: its agents wait for the next one, with the newest step in their memory."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from comparing import assert_bit_equal
from left_behind import is_alive
from moments import hold_at_step
from typed import Driver, Run, Typist, wait_for

from orchestrator.errors import EXIT_FAILED

pytestmark = pytest.mark.real

KILL_STEP = 10


def kill(driver: Driver) -> None:
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait()


def zygote_of(rank_pid: int) -> int:
    return psutil.Process(rank_pid).ppid()


def oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_the_next_driver_goes_on_from_memory(typist: Typist, run: Run, reference: Run) -> None:
    words = ["checkpoint.every_steps=0", "fault.lease_timeout_s=3", "fault.driver_grace_s=60"]
    driver = typist.train(run, *words)
    hold_at_step(driver, run, 1, KILL_STEP)  # else they might reach the last step before they are stopped
    ranks = run.rank_pids()
    zygote = zygote_of(ranks[0])
    agent = psutil.Process(zygote).ppid()
    assert oom_score_adj(agent) < oom_score_adj(ranks[0]), "without memory the kernel takes a rank, not the agent"
    kill(driver)
    wait_for("the end of the ranks without a lease", lambda: not any(map(is_alive, ranks)))
    assert is_alive(zygote)

    driver = typist.train(run, *words)
    driver.finish()
    assert "taken over from an earlier driver" in driver.output
    assert not is_alive(zygote)
    (first, second) = run.events("attempt_started")
    assert (first["source"], second["source"]) == ("start", "memory")
    assert second["attempt"] == first["attempt"] + 1
    (recovered,) = run.events("recovered")
    assert recovered["source"] == "memory"
    assert recovered["steps_lost"] <= 1
    assert recovered["resume_step"] >= KILL_STEP - 1
    assert list(run.rows()) == list(range(1, 61))
    assert_bit_equal(run, reference)


def test_a_driver_that_was_stopped_gives_way_to_the_one_that_took_over(
    typist: Typist, run: Run, reference: Run, tmp_path: Path
) -> None:
    """As after a partition: the older one wakes up beside the newer. Its folder is another one, so no lock helps."""
    words = [f"checkpoint.url={tmp_path / 'checkpoints'}", "fault.driver_grace_s=60"]
    older = typist.train(run, *words)
    hold_at_step(older, run, 1, KILL_STEP)  # else they might reach the last step before the newer one is there
    older.process.send_signal(signal.SIGSTOP)
    copied = Run(tmp_path / "elsewhere")
    shutil.copytree(run.root, copied.root)

    newer = typist.train(copied, *words)
    newer.wait_for("the newer driver's attempt", lambda: copied.newest_attempt() > 1)
    older.process.send_signal(signal.SIGCONT)
    assert older.wait() == EXIT_FAILED
    said = older.output + older.error_output
    assert "has taken the run over; nothing was damaged, and the run goes on there" in said
    assert "Traceback" not in said
    newer.finish()

    assert [event["source"] for event in copied.events("attempt_started")] == ["start", "memory"]
    assert copied.events("rank_died", "node_lost") == []  # the older one has ended nothing of the newer one's
    assert run.events("run_failed") == []
    copied.folder.checkpoints.symlink_to(tmp_path / "checkpoints")
    assert_bit_equal(copied, reference)


def test_without_a_next_driver_nothing_is_left(typist: Typist, run: Run) -> None:
    words = ["fault.lease_timeout_s=2", "fault.driver_grace_s=1", "fault.hang_constant_s=600"]
    driver = typist.train(run, *words)
    driver.wait_for("a checkpoint", lambda: run.has_folder and run.committed_steps())
    hold_at_step(driver, run, 1, KILL_STEP)  # else they might reach the last step while Ray is asked
    zygote = psutil.Process(zygote_of(run.rank_pids()[0]))
    agent = zygote.parent()
    name = json.loads(run.folder.agents.read_text())["name"]
    assert left_in_ray(typist, name) == {"agents": 1, "groups": 1}
    memory = [path for path in Path(f"/proc/{agent.pid}/fd").iterdir() if "memfd:phalanx" in str(path.readlink())]
    assert memory
    kill(driver)
    wait_for("the end of the agent and its zygote", lambda: not agent.is_running() and not zygote.is_running())
    wait_for("an empty Ray", lambda: left_in_ray(typist, name) == {"agents": 0, "groups": 0})

    driver = typist.train(run, *words)  # nothing is there to take over: the newest checkpoint serves
    driver.finish()
    assert "taken over" not in driver.output
    assert [event["source"] for event in run.events("attempt_started")] == ["start", "disk"]


def left_in_ray(typist: Typist, name: str) -> dict[str, int]:
    """How many agents and reservations Ray has of the run whose agents are called so."""
    return dict(said_by(typist, "left_in_ray.py", name))


def said_by(typist: Typist, script: str, *words: str) -> Any:
    """What a script of these tests prints, once it has joined the typist's Ray."""
    path = str(Path(__file__).with_name(script))
    done = subprocess.run(
        [sys.executable, path, *words], env=typist.environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def test_a_reservation_that_an_ending_agent_took_along_is_known_to_be_gone(typist: Typist) -> None:
    """So that the driver who waits for it asks anew."""
    here, gone = {"granted": True, "removed": False}, {"granted": False, "removed": True}
    assert said_by(typist, "removed_reservation.py") == [here, gone]


def test_what_agents_have_said_is_heard_however_late_ray_brings_it(typist: Typist) -> None:
    heard = said_by(typist, "late_words.py")
    assert heard["at_once"] == []
    assert sorted(heard["caught_up"]) == [0, 1]
    assert heard["dead"] == 1


def test_a_driver_that_was_only_stopped_starts_its_ranks_again(typist: Typist, run: Run, reference: Run) -> None:
    driver = typist.train(run, "checkpoint.every_steps=0", "fault.lease_timeout_s=3", "fault.driver_grace_s=600")
    hold_at_step(driver, run, 1, KILL_STEP)  # else they might reach the last step before they are stopped
    ranks = run.rank_pids()
    driver.process.send_signal(signal.SIGSTOP)
    wait_for("the end of the ranks without a lease", lambda: not any(map(is_alive, ranks)))
    driver.process.send_signal(signal.SIGCONT)
    driver.finish()
    died = run.events("rank_died")
    assert any("heard nothing from the driver" in event["message"] for event in died), died
    assert run.events("node_lost") == []
    assert run.events("recovered")[-1]["source"] == "memory"
    assert_bit_equal(run, reference)
