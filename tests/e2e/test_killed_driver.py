"""The driver dies on a Ray that it joined: its agents wait for the next one, with the newest step in their memory."""

import os
import signal

import psutil
import pytest
from comparing import assert_bit_equal
from typed import Driver, Run, Typist, is_alive, wait_for

pytestmark = pytest.mark.real

KILL_STEP = 10


def kill(driver: Driver) -> None:
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait()


def zygote_of(rank_pid: int) -> int:
    return psutil.Process(rank_pid).ppid()


def test_the_next_driver_goes_on_from_memory(typist: Typist, run: Run, reference: Run) -> None:
    words = ["checkpoint.every_steps=0", "fault.lease_timeout_s=3"]
    driver = typist.train(run, *words)
    driver.wait_for_step(run, KILL_STEP)
    ranks = run.rank_pids()
    zygote = zygote_of(ranks[0])
    os.kill(ranks[1], signal.SIGSTOP)  # else they might reach the last step before they are stopped
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
