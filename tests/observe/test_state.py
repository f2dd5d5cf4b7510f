import fcntl
import json
import os
from contextlib import contextmanager

import pytest
from step_rows import row

from orchestrator.observe.ledger import Ledger
from orchestrator.observe.metrics import MetricsLog
from orchestrator.observe.state import RunState, is_held, run_folders, run_state, state_of
from orchestrator.runfolder import RunFolder


@contextmanager
def held(folder: RunFolder):
    fd = os.open(folder.lock, os.O_CREAT | os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield
    os.close(fd)


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    (tmp_path / "demo").mkdir()
    return RunFolder(tmp_path / "demo")


@pytest.mark.parametrize(
    ("names", "alive", "dead"),
    [
        ("", "running", "interrupted"),
        ("run_started", "running", "interrupted"),
        ("run_started attempt_started rank_died", "running", "interrupted"),
        ("run_started attempt_started run_finished", "finished", "finished"),
        ("run_started attempt_started run_failed", "failed", "failed"),
        ("run_started attempt_started run_failed attempt_started", "running", "interrupted"),
        ("run_started attempt_started preemption_notice checkpoint_committed", "running", "preempted"),
        ("run_started preemption_notice requeued", "running", "preempted"),
        ("run_started preemption_notice run_started attempt_started", "running", "interrupted"),
        ("run_started attempt_started preemption_notice run_finished", "finished", "finished"),
        ("run_started run_finished checkpoint_committed", "finished", "finished"),
    ],
)
def test_the_state_table(names, alive, dead):
    events = [{"event": name, "attempt": 1} for name in names.split()]
    assert (state_of(events, True), state_of(events, False)) == (RunState(alive), RunState(dead))


def test_the_lock_tells_whether_a_driver_lives(folder):
    assert not is_held(folder.lock)
    with held(folder):
        assert is_held(folder.lock)
        assert is_held(folder.lock)
    assert not is_held(folder.lock)


def test_looking_does_not_keep_a_driver_out(folder):
    folder.lock.touch()
    assert not is_held(folder.lock)
    fd = os.open(folder.lock, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_a_run_in_the_middle(folder):
    folder.plan.write_text(json.dumps({"steps": 100}))
    times = iter([10.0, 11.0, 12.0, 13.0, 14.0, 15.0])
    ledger = Ledger(folder.events, lambda: next(times))
    ledger.append("run_started", 1, None)
    ledger.append("attempt_started", 1, None)
    ledger.append("checkpoint_committed", 1, 50, path="checkpoints/step_00000050")
    ledger.append("rank_died", 1, 57)
    ledger.append("attempt_started", 2, None)
    ledger.append("recovered", 2, 51, downtime_s=0.5)
    metrics = MetricsLog(folder.metrics)
    for step in range(1, 58):
        metrics.append(row(step, step_s=9.0))
    for step in range(51, 61):
        metrics.append(row(step, attempt=2, step_s=0.5, loss=2.0))
    with held(folder):
        running = run_state(folder)
    assert (running.state, running.step, running.steps, running.loss) == (RunState.running, 60, 100, 2.0)
    assert (running.attempts, running.restarts, running.downtime_s) == (2, 1, 0.5)
    assert running.eta_s == 20.0
    assert (running.started_s, running.last_event_s) == (10.0, 15.0)
    assert running.checkpoint == "checkpoints/step_00000050"
    stopped = run_state(folder)
    assert (stopped.state, stopped.eta_s) == (RunState.interrupted, None)


@pytest.mark.parametrize(
    ("names", "restarts"),
    [
        ("driver rank_died rank_died attempt_started recovered", 1),
        ("driver rank_died attempt_started node_lost attempt_started", 2),
        ("driver preemption_notice driver", 0),  # typed again, or requeued
        ("driver driver recovered", 0),  # the first one was killed
        ("driver rank_died run_failed driver", 0),
        ("driver resized attempt_started anomaly rollback attempt_started", 1),
    ],
)
def test_a_restart_is_an_attempt_in_place_of_one_that_failed(folder, names, restarts):
    ledger = Ledger(folder.events, lambda: 1.0)
    for name in names.split():
        if name == "driver":
            ledger.append("resized", 0, 0, driver_started_s=0.5)  # whatever its first event is
            ledger.append("attempt_started", 1, None)
        else:
            ledger.append(name, 1, None)
    assert run_state(folder).restarts == restarts


def test_an_empty_folder_and_torn_files_are_still_a_state(folder):
    empty = run_state(folder)
    assert (empty.state, empty.step, empty.steps, empty.loss) == (RunState.interrupted, 0, None, None)
    for path in (folder.plan, folder.events, folder.metrics):
        path.write_bytes(b'{"steps": 1')
    assert run_state(folder).steps is None


def test_runs_newest_first(tmp_path):
    assert run_folders(tmp_path / "none") == []
    for started_s, name in ((2.0, "a"), (3.0, "b"), (1.0, "c")):
        (tmp_path / name).mkdir()
        Ledger(RunFolder(tmp_path / name).events, lambda at=started_s: at).append("run_started", 1, None)
    (tmp_path / "no run").mkdir()
    (tmp_path / "file").touch()
    assert [folder.run_id for folder in run_folders(tmp_path)] == ["b", "a", "c"]
