"""Where a rollback goes, what it skips, and what it leaves behind: tables, and whole histories played through."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.lineage import Fork, Lineage
from orchestrator.control.anomalies import Anomaly, Kind
from orchestrator.control.branches import Branch, Limit, limit_for, lineage, windows_to_skip
from orchestrator.control.clock import SYSTEM_CLOCK
from orchestrator.control.rollback import Rollbacks, anomaly_fields, read_branches
from orchestrator.data.order import window_of_step
from orchestrator.errors import ConfigError
from orchestrator.runfolder import RunFolder
from orchestrator.spec import ResumePoint


def bad(step: int, kind: Kind = Kind.loss_not_finite, good_step: int | None = None) -> Anomaly:
    return Anomaly(kind, step, step - 1 if good_step is None else good_step, "the loss is nan")


def branch(at_step: int, anomaly_step: int, *, attempt: int = 1, number: int = 1) -> Branch:
    return Branch(
        branch=number,
        attempt=attempt,
        at_step=at_step,
        anomaly_step=anomaly_step,
        kind="loss_not_finite",
        reason="the loss is nan",
        windows=(anomaly_step - 1,),
        skipped_windows=(anomaly_step - 1,),
    )


@pytest.mark.parametrize(
    ("anomaly", "before", "limit"),
    [
        (bad(21), [], Limit(20, True)),
        (bad(21), [branch(10, 11)], Limit(20, True)),  # the last rollback has helped
        (bad(21), [branch(20, 21)], Limit(19, False)),  # it has not: what it went back to is to blame
        (bad(15), [branch(20, 21)], Limit(14, False)),
        (bad(21), [branch(20, 21), branch(10, 21)], Limit(9, False)),
        (bad(1), [], Limit(0, True)),
        (bad(1), [branch(0, 1)], Limit(0, False)),  # there is nothing before the start
        (bad(40, Kind.replicas_differ, 30), [], Limit(30, True)),
    ],
)
def test_how_far_back_is_safe(anomaly, before, limit):
    assert limit_for(anomaly, before) == limit


@pytest.mark.parametrize(
    ("anomaly", "before", "at_step", "skipped", "windows"),
    [
        (bad(21), [], 20, (), (20,)),
        (bad(21), [], 10, (), (20,)),  # an older point: the steps in between are the same again
        (bad(21), [branch(20, 21)], 10, (20,), (10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21)),
        (bad(3), [], 2, (0, 2), (4,)),  # steps 0, 1, 2 read windows 1, 3, 4
        (bad(40, Kind.replicas_differ, 30), [], 30, (), ()),
        (bad(40, Kind.step_not_repeatable), [], 39, (), ()),
    ],
)
def test_what_is_skipped(anomaly, before, at_step, skipped, windows):
    assert windows_to_skip(anomaly, before, at_step, skipped) == windows


@pytest.mark.parametrize(
    ("attempt", "step", "survives"),
    [(1, 20, True), (1, 21, False), (2, 21, True), (2, 15, True), (2, 30, False), (3, 30, True), (1, 10, True)],
)
def test_what_survives(attempt, step, survives):
    """Attempt 1 was left at step 20, attempt 2 at step 25."""
    assert Lineage((Fork(1, 20), Fork(2, 25))).survives(attempt, step) is survives


@given(st.data())
def test_a_played_history_equals_the_run_that_was_told(data):
    """Attempts train, save and roll back at will: what survives is always one history, without a gap, and each of its
    steps has read the window that a run reads which was told of all skipped windows from the start."""
    branches: list[Branch] = []
    saved: dict[int, tuple[int, tuple[tuple[int, int], ...]]] = {0: (0, ())}
    skipped: tuple[int, ...] = ()
    step, history, attempt = 0, [], 1
    for _ in range(data.draw(st.integers(1, 6))):
        for _ in range(data.draw(st.integers(0, 12))):
            history.append((step, window_of_step(step, skipped)))
            step += 1
            if data.draw(st.booleans()):
                saved[step] = (attempt, tuple(history))
        anomaly = bad(step + 1)
        limit = limit_for(anomaly, branches)
        alive = lineage(branches)
        at_step = max(s for s, (a, _) in saved.items() if s <= limit.max_step and alive.survives(a, s))
        windows = windows_to_skip(anomaly, branches, at_step, skipped)
        skipped = tuple(sorted({*skipped, *windows}))
        branches.append(replace(branch(at_step, anomaly.step, attempt=attempt), skipped_windows=skipped))
        assert lineage(branches).survives(saved[at_step][0], at_step)
        attempt, step, history = attempt + 1, at_step, list(saved[at_step][1])
        assert history == [(s, window_of_step(s, skipped)) for s in range(at_step)]
        after = {s for s, (a, _) in saved.items() if s > at_step}
        assert not any(lineage(branches).survives(saved[s][0], s) for s in after), "it was left behind"
        assert not set(skipped) & {window for _, window in history}


def test_a_branch_is_on_disk_before_it_is_told(tmp_path):
    folder = RunFolder(tmp_path)
    path = folder.branches
    rollbacks = Rollbacks(folder, SYSTEM_CLOCK)
    assert rollbacks.limit is None
    assert rollbacks.branch_off(ResumePoint(step=5)) is None
    assert not path.exists(), "a run without rollbacks has no such file"
    rollbacks.begin(bad(21), 3, (4,))
    assert rollbacks.limit == Limit(20, True)
    made = rollbacks.branch_off(ResumePoint(step=20, source="memory"))
    assert (made.branch, made.windows, made.skipped_windows) == (1, (21,), (4, 21)), "window 4 was skipped before"
    assert rollbacks.limit is None

    again = Rollbacks(folder, SYSTEM_CLOCK)
    assert read_branches(path) == [made]
    assert again.lineage == Lineage((Fork(3, 20),))
    older = again.on_newest_branch(ResumePoint(step=10, source="disk", skipped_windows=(4,)))
    assert (older.step, older.skipped_windows, older.branch) == (10, (4, 21), 1)
    assert again.anomaly_step == 21


def record(folder: RunFolder, *events: dict) -> None:
    with folder.events.open("a") as file:
        file.writelines(json.dumps({"t": 0.0, **event}) + "\n" for event in events)


def anomaly_event(anomaly: Anomaly, attempt: int) -> dict:
    """As the controller writes it."""
    return {"event": "anomaly", "attempt": attempt, "step": anomaly.step, **anomaly_fields(anomaly, [])}


def test_a_rollback_whose_driver_died_before_it_was_recorded_is_the_next_drivers(tmp_path):
    folder = RunFolder(tmp_path)
    found = Anomaly(Kind.replicas_differ, 40, 30, "rank 2 holds other parameters", (2,))
    record(folder, {"event": "attempt_started", "attempt": 3, "step": 0}, anomaly_event(found, 3))
    record(folder, {"event": "node_lost", "attempt": 3, "step": 40})
    for _ in range(2):  # the next driver may die there, too
        rollbacks = Rollbacks(folder, SYSTEM_CLOCK)
        assert rollbacks.limit == Limit(30, True)
    made = rollbacks.branch_off(ResumePoint(step=30))
    assert (made.attempt, made.at_step, made.anomaly_step, made.reason) == (3, 30, 40, found.message)
    again = Rollbacks(folder, SYSTEM_CLOCK)
    assert again.limit is None, "it is recorded, though no attempt has started since"
    again.begin(found, 3, ())  # agents that were taken over say so once more
    assert again.limit is None
    again.begin(bad(50), 4, ())
    assert again.limit == Limit(49, True)


def test_an_anomaly_that_an_attempt_came_after_calls_for_nothing(tmp_path):
    folder = RunFolder(tmp_path)
    record(folder, anomaly_event(bad(21), 3), {"event": "attempt_started", "attempt": 4, "step": 20})
    assert Rollbacks(folder, SYSTEM_CLOCK).limit is None


def test_a_store_whose_run_folder_was_lost_goes_on_counting(tmp_path):
    rollbacks = Rollbacks(RunFolder(tmp_path), SYSTEM_CLOCK)
    rollbacks.begin(bad(31), 7, (3,))
    made = rollbacks.branch_off(ResumePoint(step=30, branch=2, skipped_windows=(3,)))
    assert made.branch == 3


def test_a_file_that_says_something_else_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.branches.write_text('{"branch": 1}\n')
    with pytest.raises(ConfigError, match=r"branches\.jsonl can't be read .*left behind"):
        Rollbacks(folder, SYSTEM_CLOCK)
