"""Losing workers: a run that is killed at ten moments is the run that nothing disturbed, to the last bit."""

import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from comparing import assert_bit_equal
from moments import LiveRank, hold_at_step, hold_in
from typed import Driver, Run, Typist

from launch.kills import Kill, Moment
from orchestrator.agent.watchdog import Phase
from orchestrator.observe.goodput import goodput_ledger
from orchestrator.observe.metrics import StepRow, read_rows

pytestmark = pytest.mark.real


def ten_kills(seed: int) -> list[Kill]:
    """Six at random steps, two at starts, two at saves, in an order that a run of 60 steps meets."""
    dice = random.Random(seed)
    at_steps = [Kill(Moment.step, dice.randrange(2), step) for step in sorted(dice.sample(range(1, 56), 6))]
    kills = [Kill(Moment.start, dice.randrange(2)), *at_steps]
    kills.insert(dice.randrange(2, 4), Kill(Moment.start, dice.randrange(2)))
    kills.insert(dice.randrange(1, 3), Kill(Moment.save, dice.randrange(2)))
    kills.insert(dice.randrange(4, 6), Kill(Moment.save, dice.randrange(2)))
    return kills


def carry_out(kill: Kill, driver: Driver, run: Run, after_attempt: int) -> int:
    """SIGKILL the rank at its moment in an attempt newer than `after_attempt`; returns the attempt."""
    driver.wait_for("a new attempt", lambda: run.newest_attempt() > after_attempt)
    attempt = run.newest_attempt()
    pid = driver.wait_for("the rank's process id", lambda: run.rank_pid(attempt, kill.rank))
    if kill.moment is Moment.step:
        assert hold_at_step(driver, run, kill.rank, kill.step).pid == pid
    if kill.moment is Moment.save:
        driver.wait_for("a save", lambda: any(e["attempt"] == attempt for e in run.events("checkpoint_started")))
    os.kill(pid, signal.SIGKILL)
    return attempt


def assert_ledger_is_true(run: Run, kills: dict[int, Kill]) -> None:
    """Every kill is a death of that rank by that signal, every recovery goes on from the newest checkpoint."""
    deaths = run.events("rank_died")
    for attempt, kill in kills.items():
        killed = [e for e in deaths if e["attempt"] == attempt and e["signal"] == signal.SIGKILL]
        assert [event["rank"] for event in killed] == [kill.rank]
    assert {event["attempt"] for event in deaths} == set(kills)
    committed, reached, lost_from = 0, 0, None
    for event in run.events():
        match event["event"]:
            case "checkpoint_committed":
                committed = event["step"]
            case "attempt_started":
                if event["source"] == "memory":
                    assert event["resume_step"] >= committed
                else:
                    assert event["resume_step"] == committed
                reached = event["resume_step"]
            case "first_step":
                reached = event["step"]
            case "rank_died" if lost_from is None:
                lost_from = event["step"]
                assert lost_from >= reached
            case "recovered":
                assert event["source"] in ("memory", "start")
                assert event["downtime_s"] > 0
                assert event["resume_step"] <= event["step"]
                assert event["steps_lost"] == max(0, lost_from - event["resume_step"])
                lost_from = None
    assert lost_from is None
    assert_time_is_booked(run)


def assert_time_is_booked(run: Run) -> None:
    """Every second once: a start, recoveries from a death to the next step's begin, steps that were done again."""
    events, rows = run.events(), read_rows(run.folder.metrics)
    goodput = goodput_ledger(events, rows).closed()
    spent_s = goodput.seconds()
    assert sum(goodput.spent_us.values()) == goodput.wall_us
    assert goodput.wall_s == pytest.approx(events[-1]["t"] - events[0]["driver_started_s"], abs=1e-3)
    assert spent_s["start"] > 0
    assert spent_s["recovery"] > 0.5 * seconds_without_a_step(events, rows)
    assert spent_s["idle"] < 0.1 * goodput.wall_s
    again = sum(event["steps_lost"] for event in run.events("recovered"))
    assert (spent_s["recomputed"] > 0) == (again > 0)
    assert all(0 <= row.goodput <= 1 for row in rows)


def seconds_without_a_step(events: list[dict[str, Any]], rows: Sequence[StepRow]) -> float:
    """From each death until the next attempt that did a step began it."""
    firsts = {row.attempt: row for row in reversed(rows)}
    found, died_s = 0.0, None
    for event in events:
        if event["event"] == "rank_died" and died_s is None:
            died_s = event["t"]
        first = firsts.get(event["attempt"]) if event["event"] == "recovered" else None
        if first is not None and first.time is not None and died_s is not None:
            found += max(0.0, first.time - first.step_s - died_s)
            died_s = None
    return found


def test_ten_kills_change_nothing(typist: Typist, run: Run, reference: Run) -> None:
    driver = typist.train(run)
    done: dict[int, Kill] = {}
    for kill in ten_kills(seed=1):
        done[carry_out(kill, driver, run, max(done, default=0))] = kill
    driver.finish()
    assert len(done) == 10
    assert_ledger_is_true(run, done)
    assert_bit_equal(run, reference)
    assert [event["step"] for event in run.events("run_finished")] == [60]


def kill_amid_evaluation(driver: Driver, run: Run, step: int) -> None:
    """Rank 1, in the evaluation after `step`, once both ranks' snapshots of that step are whole."""
    driver.wait_for("an attempt", run.newest_attempt)
    first, second = (
        LiveRank(driver.wait_for("a rank's process id", lambda rank=rank: run.rank_pid(1, rank)), rank, run)
        for rank in (0, 1)
    )

    def is_evaluating() -> bool:
        seen = second.seen()
        return seen is not None and seen.position.phase is Phase.evaluation and step in second.sealed_steps()

    assert hold_in(second, None, is_evaluating, lambda: not second.is_alive)
    driver.wait_for("rank 0's snapshot", lambda: not first.is_alive or step in first.sealed_steps())
    os.kill(second.pid, signal.SIGKILL)


def test_a_kill_amid_an_evaluation_does_not_lose_it(typist: Typist, run: Run, reference: Run) -> None:
    driver = typist.train(run)
    kill_amid_evaluation(driver, run, 20)
    driver.finish()
    (recovered,) = run.events("recovered")
    assert (recovered["resume_step"], recovered["steps_lost"]) == (20, 0)
    assert_bit_equal(run, reference)


def test_a_kill_after_the_last_step_is_priced_and_loses_no_evaluation(
    typist: Typist, run: Run, reference: Run
) -> None:
    driver = typist.train(run, "train.steps=20", "optim.schedule_steps=60")
    kill_amid_evaluation(driver, run, 20)
    driver.finish()
    (recovered,) = run.events("recovered")
    assert (recovered["step"], recovered["resume_step"], recovered["steps_lost"]) == (20, 20, 0)
    assert recovered["downtime_s"] > 0
    assert [event["step"] for event in run.events("run_finished")] == [20]
    assert run.rows()[20].eval_loss == reference.rows()[20].eval_loss


def test_kills_change_nothing_at_stage_3(typist: Typist, tmp_path: Path) -> None:
    words = ["parallel.zero_stage=3", "train.steps=16", "optim.schedule_steps=60"]
    calm, killed = Run(tmp_path / "calm"), Run(tmp_path / "killed")
    typist.train(calm, *words).finish()
    driver = typist.train(killed, *words)
    kills = [Kill(Moment.step, 1, 5), Kill(Moment.start, 0), Kill(Moment.save, 1), Kill(Moment.step, 0, 15)]
    done: dict[int, Kill] = {}
    for kill in kills:
        done[carry_out(kill, driver, killed, max(done, default=0))] = kill
    driver.finish()
    assert_ledger_is_true(killed, done)
    assert_bit_equal(killed, calm)
