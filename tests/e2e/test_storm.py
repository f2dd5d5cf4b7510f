"""The storm: a rank is killed every 15 s, and the run is the calm one to the last bit. What it cost is printed."""

import os
import random
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from striking import differences
from typed import Driver, Run, Typist

from launch.prove_digest import final_digest
from orchestrator.errors import EXIT_PREEMPTED
from orchestrator.observe.goodput import Spent, goodput_ledger
from orchestrator.observe.metrics import read_rows

EVERY_S = 15.0
CI_S = 60.0
SOAK_S = 300.0
WORDS = [
    "train.eval_every_steps=0",
    "optim.schedule_steps=100000",
    "checkpoint.every_steps=100",
    "fault.max_restarts=1000",
]


@dataclass(frozen=True)
class Cost:
    """What the run's own ledger says."""

    kills: int
    goodput: float
    goodput_once_started: float
    """Without the time until its first step."""
    downtimes_s: Sequence[float]
    steps_lost: int

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, goodput {self.goodput:.4f}, {self.goodput_once_started:.4f} once started; "
            f"a recovery took {statistics.median(self.downtimes_s):.2f} s in the median and "
            f"{max(self.downtimes_s):.2f} s at most; {self.steps_lost} steps lost"
        )


def blow(driver: Driver, run: Run, seconds: float, dice: random.Random) -> int:
    """SIGKILL a rank every 15 s, whatever the run is doing; the number of kills, each recovered from."""
    begun_s, kills = time.monotonic(), 0
    while (kills + 1) * EVERY_S <= seconds:
        due_s = begun_s + (kills + 1) * EVERY_S
        driver.wait_for("the next blow", lambda due_s=due_s: time.monotonic() >= due_s)
        attempt = run.newest_attempt()
        rank = dice.randrange(2)
        pid = driver.wait_for("a rank to kill", lambda a=attempt, r=rank: run.rank_pid(a, r))
        os.kill(pid, signal.SIGKILL)
        kills += 1
        driver.wait_for("the recovery", lambda kills=kills: len(run.events("recovered")) == kills)
    return kills


def cost_of(run: Run, kills: int) -> Cost:
    goodput = goodput_ledger(run.events(), read_rows(run.folder.metrics)).closed()
    recovered = run.events("recovered")
    productive_us = goodput.spent_us[Spent.productive]
    return Cost(
        kills=kills,
        goodput=goodput.ratio or 0.0,
        goodput_once_started=productive_us / (goodput.wall_us - goodput.spent_us[Spent.start]),
        downtimes_s=[event["downtime_s"] for event in recovered],
        steps_lost=sum(event["steps_lost"] for event in recovered),
    )


def weather(typist: Typist, run: Run, calm: Run, seconds: float) -> Cost:
    """Through the storm to a notice at its end; then the same steps without it."""
    driver = typist.train(run, *WORDS, "train.steps=100000")
    driver.wait_for_step(run, 1)
    kills = blow(driver, run, seconds, random.Random(1))
    driver.process.terminate()
    assert driver.wait() == EXIT_PREEMPTED, driver.output + driver.error_output
    last = max(run.rows())
    again = typist.train(calm, *WORDS, f"train.steps={last}")
    again.finish()
    problems = differences(run, calm, final_digest(calm.folder), is_finished=False)
    assert problems == []
    return cost_of(run, kills)


@pytest.mark.real
def test_a_minute_of_the_storm_changes_nothing(typist: Typist, run: Run, tmp_path: Path) -> None:
    cost = weather(typist, run, Run(tmp_path / "calm"), CI_S)
    print(cost)
    assert cost.kills == 4
    assert 0 < cost.goodput < cost.goodput_once_started < 1


@pytest.mark.soak
def test_five_minutes_of_the_storm_change_nothing(typist: Typist, run: Run, tmp_path: Path) -> None:
    cost = weather(typist, run, Run(tmp_path / "calm"), SOAK_S)
    print(cost)
    assert cost.kills == 20
