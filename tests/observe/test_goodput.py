"""Where the time went: stories whose account is known to the microsecond, and the sum over any story at all."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_rows import row

from orchestrator.observe.goodput import Goodput, GoodputLedger, Spent, goodput_ledger, in_order
from orchestrator.observe.ledger import EventName
from orchestrator.observe.metrics import StepRow

STEP_S = 1.0


def event(name: str, t: float, attempt: int = 1, step: int | None = None, **fields: Any) -> dict[str, Any]:
    return {"t": t, "event": name, "attempt": attempt, "step": step, **fields}


def done(step: int, time: float, attempt: int = 1, **changes: Any) -> StepRow:
    """A step of one second of which 0.1 s was waiting for data, ended at `time`."""
    return row(step, attempt, **({"time": time, "step_s": STEP_S, "data_s": 0.1} | changes))


def spent(goodput: Goodput) -> dict[str, float]:
    """Seconds of the parts that are not 0."""
    return {part: seconds for part, seconds in goodput.seconds().items() if seconds}


def account(events: list[dict[str, Any]], rows: list[StepRow], now_s: float | None = None) -> dict[str, float]:
    goodput = goodput_ledger(events, rows).closed(now_s)
    assert sum(goodput.spent_us.values()) == goodput.wall_us
    return spent(goodput)


CALM = [
    event("run_started", 103.0, 0, 0, driver_started_s=100.0),
    event("attempt_started", 104.0, resume_step=0),
    event("first_step", 108.5, step=1),
]
CALM_ROWS = [done(step, 107.0 + step) for step in (1, 2, 3)]


def test_a_calm_run_is_its_start_its_steps_and_its_last_checkpoint():
    events = [*CALM, event("checkpoint_committed", 111.5, step=3), event("run_finished", 112.0, step=3)]
    goodput = goodput_ledger(events, CALM_ROWS).closed()
    assert spent(goodput) == {"start": 7.0, "productive": 2.7, "data_wait": 0.3, "checkpoint": 2.0}
    assert goodput.wall_s == 12.0
    assert goodput.ratio == 2.7 / 12


def test_a_checkpoint_in_the_background_costs_nothing():
    events = [*CALM, event("checkpoint_committed", 109.4, step=2)]
    assert account(events, CALM_ROWS) == {"start": 7.0, "productive": 2.7, "data_wait": 0.3}


def test_a_failure_costs_the_step_under_way_the_restart_and_the_steps_that_are_done_again():
    events = [
        *CALM,
        event("rank_died", 110.6, step=3),
        event("rank_died", 110.7, step=3),
        event("attempt_started", 111.0, 2, resume_step=1),
    ]
    rows = [*CALM_ROWS, *(done(step, 111.0 + step, 2) for step in (2, 3, 4))]
    assert account(events, rows) == {
        "start": 7.0,
        "productive": 3.6,  # steps 1 to 4, each once
        "recomputed": 1.8,  # steps 2 and 3
        "data_wait": 0.6,
        "recovery": 2.0,  # 110.0, when step 3 was done, to 112.0, when step 2 began again
    }


def test_a_rollback_costs_the_restart_and_the_steps_that_are_done_again():
    events = [
        *CALM,
        event("anomaly", 110.2, step=3),
        event("rollback", 110.6, step=3, to_step=2),
        event("attempt_started", 111.0, 2, resume_step=2),
    ]
    rows = [*CALM_ROWS, *(done(step, 110.0 + step, 2) for step in (3, 4))]
    assert account(events, rows) == {
        "start": 7.0,
        "productive": 3.6,
        "recomputed": 0.9,  # step 3, on another window
        "data_wait": 0.5,
        "recovery": 2.0,
    }


def test_a_killed_driver_is_recovery_while_it_lived_idle_until_the_next_and_recovery_until_it_trains():
    events = [
        *CALM,
        event("checkpoint_started", 110.5, step=3),
        event("attempt_started", 210.0, 2, resume_step=3, driver_started_s=200.0),
    ]
    told = account(events, [*CALM_ROWS, done(4, 215.0, 2)])
    assert told == {"start": 7.0, "productive": 3.6, "data_wait": 0.4, "recovery": 0.5 + 14.0, "idle": 89.5}


def test_a_preempted_run_waits_for_its_checkpoint_and_is_idle_until_it_is_started_again():
    events = [
        *CALM,
        event("preemption_notice", 109.5, step=2),
        event("checkpoint_committed", 112.0, step=3),
        event("attempt_started", 152.0, 2, resume_step=3, driver_started_s=150.0),
    ]
    told = account(events, [*CALM_ROWS, done(4, 155.0, 2)])
    assert told == {
        "start": 7.0 + 4.0,
        "productive": 3.6,
        "data_wait": 0.4,
        "checkpoint": 2.0,
        "idle": 38.0,
    }


def test_snapshots_and_evaluations_have_their_own_parts():
    rows = [
        done(1, 108.0, snapshot_s=0.25),
        done(2, 109.5, keep_s=0.2, eval_s=3.0, eval_loss=1.0),  # half a second after the first: 0.2 known
        done(3, 113.5),
    ]
    assert account(CALM, rows) == {
        "start": 7.0,
        "productive": pytest.approx(3 * 0.9 - 0.25),
        "data_wait": 0.3,
        "snapshot_stall": pytest.approx(0.25 + 0.2),
        "evaluation": 3.0,
        "idle": pytest.approx(0.3),
    }


def test_rows_left_out_are_counted_by_those_that_are_there():
    rows = [done(step, 107.0 + step) for step in (1, 11, 21)]
    events = [*CALM, event("rank_died", 130.0, step=22)]  # step 22 was done, its row was not due
    assert account(events, rows) == {
        "start": 7.0,
        "productive": pytest.approx(21 * 0.9 + 1.0),
        "data_wait": pytest.approx(2.1),
        "recovery": 1.0,
    }


def test_a_run_that_goes_on_is_booked_until_now():
    assert account(CALM, CALM_ROWS, now_s=110.4)["productive"] == pytest.approx(2.7 + 0.4)
    assert account(CALM, CALM_ROWS, now_s=171.0)["idle"] == pytest.approx(60.0)
    died = [*CALM, event("node_lost", 110.0, step=3)]
    assert account(died, CALM_ROWS, now_s=140.0)["recovery"] == 30.0


def test_a_step_that_a_lost_agent_had_not_told_is_not_counted_twice():
    events = [*CALM, event("node_lost", 111.0, step=3), event("attempt_started", 112.0, 2, resume_step=4)]
    rows = [*CALM_ROWS, done(4, 110.9, 2), done(5, 114.0, 2)]
    told = account(events, rows)
    assert told["recovery"] == 3.0
    assert "recomputed" not in told


def test_nothing_is_known_of_a_run_that_has_not_begun():
    goodput = GoodputLedger().closed(now_s=5.0)
    assert (goodput.wall_us, goodput.ratio) == (0, None)


TIMES = st.floats(-1e3, 1e5, allow_nan=False)
SECONDS = st.floats(0.0, 100.0) | st.just(float("nan"))
EVENTS = st.builds(
    lambda name, t, attempt, step, resumed, driver: (
        event(name, t, attempt, step, resume_step=resumed) | ({} if driver is None else {"driver_started_s": driver})
    ),
    st.sampled_from([str(name) for name in EventName]),
    TIMES,
    st.integers(0, 4),
    st.none() | st.integers(0, 20),
    st.none() | st.integers(0, 20),
    st.none() | TIMES,
)
ROWS = st.builds(
    lambda step, attempt, time, step_s, data_s, more: row(
        step, attempt, time=time, step_s=step_s, data_s=data_s, **more
    ),
    st.integers(1, 20),
    st.integers(1, 4),
    st.none() | TIMES | st.just(float("nan")),
    SECONDS,
    SECONDS,
    st.fixed_dictionaries({}, optional={"snapshot_s": SECONDS, "keep_s": SECONDS, "eval_s": SECONDS}),
)


@settings(deadline=None)
@given(st.lists(EVENTS | ROWS, max_size=30), st.none() | TIMES)
def test_any_story_at_all_sums_to_its_wall_time_and_no_part_ever_shrinks(records, now_s):
    ledger, before = GoodputLedger(), dict.fromkeys(Spent, 0)
    for record in records:
        if isinstance(record, StepRow):
            ledger.row(record)
        else:
            ledger.event(record)
        closed = ledger.closed(now_s)
        assert sum(closed.spent_us.values()) == closed.wall_us >= 0
        assert all(us >= 0 for us in closed.spent_us.values())
        after = booked(ledger)
        assert all(after[part] >= before[part] for part in Spent)
        before = after


def test_the_first_second_of_unix_time_is_a_time_as_any_other():
    ledger = GoodputLedger()
    ledger.row(row(1, 1, time=-1.0, step_s=0.0, data_s=0.0))
    ledger.event(event("attempt_started", 0.0, 2))
    closed = ledger.closed()
    assert sum(closed.spent_us.values()) == closed.wall_us == 1_000_000


def booked(ledger: GoodputLedger) -> dict[Spent, int]:
    """What is booked for good: the account closed at a time that has passed."""
    account = ledger.closed(now_s=-1e9)
    assert sum(account.spent_us.values()) == account.wall_us
    return dict(account.spent_us)


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=12), st.lists(ROWS, max_size=12))
def test_the_files_of_any_run_are_read_whole_and_in_their_order(events, rows):
    told = list(in_order(events, rows))
    assert [id(record) for record in told if isinstance(record, StepRow)] == [id(each) for each in rows]
    assert [record for record in told if not isinstance(record, StepRow)] == events


def test_the_parts_are_those_that_the_documentation_names():
    assert [str(part) for part in Spent] == [
        "productive", "recomputed", "data_wait", "snapshot_stall", "checkpoint", "evaluation", "start", "recovery",
        "idle",
    ]  # fmt: skip
