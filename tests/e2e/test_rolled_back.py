"""Bad numbers in whole runs: a window of noise is skipped whatever dies meanwhile; what runs away for good ends."""

import json
import os
import signal
from pathlib import Path

import pytest
from comparing import assert_bit_equal
from moments import hold_at_step, let_go
from noisy import copy_with_noise
from slowing import slowed
from typed import Driver, Run, Typist

from orchestrator.checkpoint.reader import read_marker
from orchestrator.checkpoint.store import Store
from orchestrator.codec import encode
from orchestrator.control.branches import Branch
from orchestrator.control.rollback import read_branches
from orchestrator.observe.metrics import read_rows

pytestmark = pytest.mark.real

CORRUPT = Path(__file__).parent.parent / "rank" / "corrupt"
WINDOW = 40
WORDS = ("fault.spike_threshold=6", "fault.spike_window=16", "run.id=noisy")


@pytest.fixture
def noisy(data: Path, typist: Typist, tmp_path: Path) -> Typist:
    path = tmp_path / "noisy"
    copy_with_noise(data, path, window=WINDOW, batch=16, seq_len=64, seed=1234)
    typist.words = [*typist.words, f"data.path={path}", *WORDS]
    return typist


def tell(run: Run) -> None:
    """What a run folder says that leaves the window out from its start."""
    told = Branch(
        branch=1,
        attempt=0,
        at_step=0,
        anomaly_step=0,
        kind="loss_spike",
        reason="told",
        windows=(WINDOW,),
        skipped_windows=(WINDOW,),
    )
    folder = run.root / "noisy"
    folder.mkdir(parents=True)
    (folder / "branches.jsonl").write_text(json.dumps(encode(told)) + "\n")


def kill(driver: Driver) -> None:
    os.kill(driver.process.pid, signal.SIGKILL)
    driver.wait()


def test_a_spike_is_skipped_though_the_driver_dies_right_then(noisy: Typist, run: Run, tmp_path: Path) -> None:
    told = Run(tmp_path / "told")
    tell(told)
    noisy.train(told).finish()
    assert told.events("anomaly") == []

    first = noisy.train(run)
    first.wait_for("a rollback", lambda: run.events("rollback"))
    kill(first)
    (branch,) = read_branches(run.folder.branches)
    second = noisy.train(run)
    second.finish()

    (anomaly,) = run.events("anomaly")
    assert (anomaly["kind"], anomaly["step"]) == ("loss_spike", WINDOW + 1)
    (rollback,) = run.events("rollback")
    assert (rollback["to_step"], rollback["window"], rollback["windows"]) == (WINDOW, WINDOW, [WINDOW])
    assert rollback["reason"] == anomaly["message"] == branch.reason
    assert f"step {WINDOW + 1}: {anomaly['message']}" in first.output
    assert f"going back to step {WINDOW}, without the data of 1 window ({WINDOW}): branch 1" in first.output
    marker = read_marker(Store(run.folder.checkpoints), run.committed_steps()[-1])
    assert (marker.branch, marker.data.skipped_windows) == (1, (WINDOW,))
    attempts = {row.attempt for row in read_rows(run.folder.metrics) if row.step == WINDOW + 1}
    assert len(attempts) > 1, "metrics.jsonl has the bad row, too"
    assert_bit_equal(run, told)


def test_a_flipped_bit_is_found_and_leaves_no_trace(local_typist: Typist, run: Run, reference: Run) -> None:
    path = os.pathsep.join(filter(None, [str(CORRUPT), local_typist.environment.get("PYTHONPATH")]))
    local_typist.environment = {**local_typist.environment, "PYTHONPATH": path}
    driver = local_typist.train(run, "fault.recheck_every_steps=1")
    pid = hold_at_step(driver, run, 1, 9).pid
    os.kill(pid, signal.SIGUSR2)
    let_go(pid)
    driver.finish()

    (anomaly,) = run.events("anomaly")
    assert (anomaly["kind"], anomaly["ranks"]) == ("step_not_repeatable", [])
    (rollback,) = run.events("rollback")
    assert (rollback["to_step"], rollback["windows"]) == (anomaly["step"] - 1, [])
    assert [event["source"] for event in run.events("recovered")] == ["memory"]
    assert run.events("rank_died", "run_failed") == []
    assert_bit_equal(run, reference)


def test_a_slow_rank_is_named_while_the_run_goes_on(typist: Typist, run: Run) -> None:
    driver = typist.train(run, "train.steps=100000", "train.eval_every_steps=0")
    driver.wait_for_step(run, 3)
    pid = run.rank_pid(1, 1)
    assert pid is not None
    with slowed(pid):
        driver.wait_for("a straggler", lambda: run.events("straggler"))
    driver.process.send_signal(signal.SIGTERM)
    assert driver.wait() == 75
    (straggler,) = run.events("straggler")
    assert (straggler["rank"], straggler["phase"]) == (1, "compute")
    assert straggler["factor"] > 1.5
    assert f"rank 1 on {straggler['node']} is slow: it {straggler['message']}" in driver.output
    assert run.events("anomaly", "hang_detected", "rank_died") == []


def test_numbers_that_run_away_end_the_run(typist: Typist, run: Run) -> None:
    driver = typist.train(run, "optim.lr=1e30", "optim.warmup_steps=0", "fault.max_rollbacks=2")
    assert driver.wait() == 1
    assert len(run.events("anomaly")) == 3
    rollbacks = run.events("rollback")
    assert [event["branch"] for event in rollbacks] == [1, 2]
    assert [event["to_step"] for event in rollbacks] == [rollbacks[0]["to_step"], 0]
    assert len(rollbacks[1]["windows"]) > 1, "the second time everything since the older point is skipped"
    (failed,) = run.events("run_failed")
    for words in (
        run.events("anomaly")[-1]["message"],
        "cause: bad numbers",
        "fault.max_rollbacks=2",
        "lower optim.lr",
    ):
        assert words in failed["digest"]
        assert words in driver.output
    assert run.committed_steps() == []
    assert run.events("rank_died", "checkpoint_rejected") == []
