"""The same command goes on: after the driver's death, a notice, an interrupt, a resize, damage, or more steps."""

import os
import signal
from pathlib import Path

import pytest
from comparing import assert_bit_equal, assert_same_course
from left_behind import is_alive
from moments import hold_at_step, let_go
from typed import Run, Typist, marked_processes, wait_for

from orchestrator.errors import EXIT_PREEMPTED

pytestmark = pytest.mark.real


def resumed_at(run: Run) -> int:
    """The step from which the newest attempt went on."""
    return int(run.events("attempt_started")[-1]["resume_step"])


def test_ctrl_c_and_a_killed_driver_leave_nothing_running(local_typist: Typist, run: Run, reference: Run) -> None:
    mark = f"PHALANX_E2E_DRIVER={run.root}"
    name, _, value = mark.partition("=")
    local_typist.environment[name] = value
    words = ["tracking.wandb.mode=offline"]
    driver = local_typist.train(run, *words)
    rank = hold_at_step(driver, run, 1, 10)
    os.killpg(driver.process.pid, signal.SIGINT)  # as a terminal does: to Ray's processes, too
    driver.wait_for("the notice", lambda: run.events("preemption_notice"))
    let_go(rank.pid)
    assert driver.wait() == EXIT_PREEMPTED
    stopped = run.newest_row()
    assert stopped is not None
    assert run.committed_steps()[-1] == stopped.step
    wait_for("the end of everything the driver had started", lambda: not marked_processes(mark))

    driver = local_typist.train(run, *words)
    hold_at_step(driver, run, 1, 30)
    ranks = run.rank_pids()
    assert len(ranks) == 4
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait()
    wait_for("the end of every rank", lambda: not any(map(is_alive, ranks)))
    wait_for("the end of everything the driver had started", lambda: not marked_processes(mark))

    newest = run.committed_steps()[-1]
    local_typist.train(run, *words).finish()
    assert resumed_at(run) == newest
    assert [event["source"] for event in run.events("recovered")] == ["disk"]
    assert_bit_equal(run, reference)
    assert_one_offline_wandb_run(run)


def assert_one_offline_wandb_run(run: Run) -> None:
    """All three drivers wrote segments of one W&B run, whose id is ours."""
    segments = [path for path in run.folder.wandb.glob("offline-run-*") if path.is_dir()]
    assert len(segments) == 3
    files = [file.name for segment in segments for file in segment.glob("run-*.wandb")]
    assert files == [f"run-{run.folder.run_id}.wandb"] * 3


def test_a_finished_run_changes_nothing(typist: Typist, reference: Run) -> None:
    before = modified(reference.folder.path)
    driver = typist.train(reference)
    driver.finish()
    assert f"run {reference.folder.run_id} has already done its 60 steps" in driver.output
    assert modified(reference.folder.path) == before


def modified(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_more_steps_go_on_with_the_same_schedule(typist: Typist, run: Run, reference: Run) -> None:
    typist.train(run, "train.steps=20").finish()
    run_id = run.folder.run_id
    typist.train(run, "train.steps=25").finish()
    assert run.folder.run_id == run_id
    assert resumed_at(run) == 20
    rows, whole = run.rows(), reference.rows()
    assert list(rows) == list(range(1, 26))
    assert [row.batch_digest for row in rows.values()] == [whole[step].batch_digest for step in rows]
    # The schedule of 20 steps has ended: its last learning rate stays.
    assert len({rows[step].lr for step in range(21, 26)}) == 1
    assert rows[25].lr == pytest.approx(1e-4)


def test_interrupted_twice_then_three_workers_at_another_stage(typist: Typist, run: Run, reference: Run) -> None:
    driver = typist.train(run)
    driver.wait_for("a checkpoint", lambda: run.has_folder and run.committed_steps())
    hold_at_step(driver, run, 1, 9)
    driver.process.send_signal(signal.SIGINT)
    driver.wait_for("the first notice", lambda: run.events("preemption_notice"))
    driver.process.send_signal(signal.SIGINT)
    assert driver.wait() == EXIT_PREEMPTED
    assert run.committed_steps()
    assert not any(map(is_alive, run.rank_pids()))

    typist.train(run, "cluster.num_workers=3", "parallel.zero_stage=1").finish()
    assert [(event["from"], event["to"]) for event in run.events("resized")] == [(2, 3)]
    assert {row.world_size for row in run.rows().values()} == {2, 3}
    assert_same_course(run, reference)


def test_a_notice_saves_at_the_boundary_and_damage_goes_back_one(typist: Typist, run: Run, reference: Run) -> None:
    driver = typist.train(run, "fault.hang_constant_s=600")
    rank = hold_at_step(driver, run, 1, 22)  # else they might reach the last step while it is typed
    cancel = typist.type("cancel", str(run.folder.path))
    let_go(rank.pid)
    assert f"(pid {driver.process.pid}) was told to save" in cancel.output
    assert driver.wait() == EXIT_PREEMPTED
    assert typist.type("cancel", str(run.folder.path)).process.returncode == 2
    last = run.newest_row()
    assert last is not None
    steps = run.committed_steps()
    assert steps[-1] == last.step
    assert "go on" in driver.output or "phalanx train" in driver.output

    flip_a_byte(run.folder.checkpoints / f"step_{last.step:08d}")
    typist.train(run).finish()
    assert [event["step"] for event in run.events("checkpoint_rejected")] == [last.step]
    assert resumed_at(run) == steps[-2]
    assert_bit_equal(run, reference)


def flip_a_byte(checkpoint: Path) -> None:
    payload = max(checkpoint.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    with payload.open("r+b") as file:
        file.seek(payload.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
