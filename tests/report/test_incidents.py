"""The ledger's events as failures with a cause and a price."""

from typing import Any

from orchestrator.report.incidents import Kind, costliest, incidents


def event(t: float, name: str, attempt: int = 1, step: int | None = 10, **fields: Any) -> dict[str, Any]:
    return {"t": t, "event": name, "attempt": attempt, "step": step, **fields}


def killed(t: float, step: int, rank: int = 1) -> dict[str, Any]:
    return event(t, "rank_died", step=step, rank=rank, node="here", signal=9, message="from outside")


def test_a_failure_is_told_once_with_what_it_drew_along() -> None:
    dragged = event(
        1.9, "rank_died", rank=0, node="here", exit_code=1, message="RuntimeError: Connection closed by peer"
    )
    recovered = event(3.5, "recovered", 2, 9, downtime_s=1.5, steps_lost=2, source="memory")
    (one,) = incidents([dragged, killed(2.0, 10), event(2.5, "attempt_started", 2, 8), recovered])
    assert (one.number, one.kind, one.step, one.follow_ons) == (1, Kind.failure, 10, 1)
    assert one.words == "rank 1 on here was killed by signal 9 (SIGKILL) after step 10: from outside"
    assert (one.cause, one.downtime_s, one.steps_lost, one.source) == ("node", 1.5, 2, "memory")


def test_deaths_before_the_first_step_belong_to_the_same_failure() -> None:
    events = [
        killed(1, 10),
        event(2, "attempt_started", 2, 8),
        killed(3, 8),
        event(9, "recovered", 3, 9, downtime_s=8),
    ]
    (one,) = incidents(events)
    assert (one.follow_ons, one.step, one.downtime_s) == (1, 10, 8)


def test_a_dead_driver_shows_only_in_what_its_successor_recovered() -> None:
    (one,) = incidents([event(100.0, "recovered", 2, 51, downtime_s=20.0, steps_lost=7, source="disk")])
    assert one.words.startswith("the driver was gone")
    assert (one.time, one.step, one.steps_lost) == (80.0, 57, 7)


def test_other_causes() -> None:
    hang = event(1, "hang_detected", rank=1, node="here", message="no progress for 5.2 s")
    lost = event(2, "node_lost", node="n2")
    full = event(3, "rank_died", rank=0, node="here", exit_code=1, message="OSError: No space left on device")
    numbers = event(4, "anomaly", message="loss is nan")
    found = [
        one for e in (hang, lost, full, numbers) for one in incidents([e, event(9, "recovered", 2, downtime_s=1.0)])
    ]
    assert [one.cause for one in found] == ["hang", "node", "storage", "bad numbers"]
    assert [one.kind for one in found] == [Kind.failure] * 3 + [Kind.anomaly]


def test_a_failure_without_an_end_has_no_price() -> None:
    (one,) = incidents([killed(1, 10)])
    assert one.downtime_s is None
    (last,) = incidents([killed(1, 10), event(2, "run_failed", digest="...")])
    assert last.downtime_s is None


def test_notices_are_no_failures() -> None:
    found = incidents(
        [event(1, "preemption_notice"), event(2, "resized", 0, 10, **{"from": 4, "to": 3, "why": "why"})]
    )
    assert [one.kind for one in found] == [Kind.preemption, Kind.resize]
    assert found[1].words == "going on with 3 workers instead of 4: why"


def test_of_many_the_costliest_in_order_of_time() -> None:
    events = []
    for number in range(100):
        price = float(number % 10)
        events += [killed(number, number), event(number + 0.5, "recovered", 2, downtime_s=price)]
    shown = costliest(incidents(events), 10)
    assert [one.number for one in shown] == list(range(10, 101, 10))
