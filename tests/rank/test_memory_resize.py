"""A rank is killed and fewer or more go on from the agents' memory: nothing is lost, and the run is the same run."""

import os
import signal
from pathlib import Path

import pytest
from rank.ranks import SECRET, Heard, Ranks, open_run

from orchestrator.checkpoint.reader import CheckpointReader
from orchestrator.checkpoint.slots import Share, Slot, newest_common_step
from orchestrator.checkpoint.verify import logical_digest
from orchestrator.control.opening import OpenRun
from orchestrator.spec import ResumePoint

pytestmark = pytest.mark.real

ENDLESS = "train.steps=100000"
"""The kill ends it, however late it comes."""
MORE_STEPS = 4
FP32 = 1e-5
"""Relative: what another world size may change of a loss."""


def a_run(ranks: Ranks, root: Path, world: int, stage: int, *words: str, like: OpenRun | None = None) -> OpenRun:
    sizes = [f"cluster.num_workers={world}", f"parallel.zero_stage={stage}"]
    fixed = ["optim.schedule_steps=1000", "optim.lr=3e-3", "train.micro_batch_size=1"]
    return open_run(ranks.data, root, *sizes, *fixed, *words, like=like)


def kill_the_last_rank(ranks: Ranks, run: OpenRun) -> tuple[Heard, ResumePoint]:
    """What the run said until then, and the newest point that memory has of it."""
    world = run.plan.batch.world_size
    with ranks.start(run) as live:
        pids = live.hear_pids()
        live.hear_until(lambda heard: len(heard.rows) >= 4)
        os.kill(pids[world - 1], signal.SIGKILL)
        live.hear_until(lambda heard: world - 1 in heard.exits)
    sealed = ranks.agent.sealed_steps()
    step = newest_common_step([sealed[Share(world, rank)] for rank in range(world)])
    assert step is not None
    return live.heard, ResumePoint(step=step, source="memory", is_durable=False, world_size=world)


def resized(ranks: Ranks, run: OpenRun, world: int, stage: int, resume: ResumePoint) -> OpenRun:
    words = [f"train.steps={resume.step + MORE_STEPS}", f"checkpoint.every_steps={resume.step}"]
    return a_run(ranks, run.folder.path.parent, world, stage, *words, like=run)


def assert_the_same_run(found: Heard, calm: Heard, step: int) -> None:
    """From `step` on: its tensors to the last bit, then the same samples and learning rates, nearly the losses."""
    tensors = [logical_digest(CheckpointReader.open(heard.checkpoint(step))) for heard in (found, calm)]
    assert tensors[0] == tensors[1]
    assert sorted(found.rows) == list(range(step + 1, step + MORE_STEPS + 1))
    for number, row in found.rows.items():
        other = calm.rows[number]
        assert (row.batch_digest, row.lr, row.tokens) == (other.batch_digest, other.lr, other.tokens)
        assert row.loss == pytest.approx(other.loss, rel=FP32)


@pytest.mark.parametrize(("before", "after", "stage"), [(2, 1, 0), (4, 3, 1), (2, 3, 2), (4, 3, 3)])
def test_another_world_goes_on_from_memory(ranks: Ranks, tmp_path: Path, before: int, after: int, stage: int) -> None:
    """8 samples: on 3 ranks the last micro-step has a row of padding on one of them."""
    run = a_run(ranks, tmp_path / "killed", before, stage, ENDLESS)
    _, resume = kill_the_last_rank(ranks, run)
    calm_run = a_run(ranks, tmp_path / "calm", before, stage, ENDLESS)
    calm_run = resized(ranks, calm_run, before, stage, resume)
    found = ranks.train(resized(ranks, run, after, stage, resume), resume)
    assert {share.world_size for share in ranks.agent.sealed_steps()} == {after}  # the former world's are freed
    assert_the_same_run(found, ranks.train(calm_run), resume.step)


def test_every_range_may_come_from_another_node(ranks: Ranks, tmp_path: Path) -> None:
    run = a_run(ranks, tmp_path / "killed", 2, 2, ENDLESS)
    _, resume = kill_the_last_rank(ranks, run)
    calm_run = resized(ranks, a_run(ranks, tmp_path / "calm", 2, 2, ENDLESS), 2, 2, resume)
    ranks.agent.set_peer(SECRET, None)
    with Ranks(ranks.data) as other:
        assert other.agent.sealed_steps() == {}
        found = other.train(resized(ranks, run, 3, 2, resume), resume, holder=ranks.agent)
    assert_the_same_run(found, ranks.train(calm_run), resume.step)


def test_ranks_that_pause_leave_their_last_step_in_memory(ranks: Ranks, tmp_path: Path) -> None:
    """Also where no snapshot was due, and without a checkpoint: another world goes on, and nothing is lost."""
    run = a_run(ranks, tmp_path / "paused", 2, 2, ENDLESS, "snapshot.every_steps=1000")
    with ranks.start(run) as live:
        live.hear_until(lambda heard: len(heard.rows) >= 3)
        ranks.agent.leave("pause")
        before = live.hear_all()
    before.check_all_done()
    assert {message["is_paused"] for message in before.by_kind["done"]} == {True}
    (step,) = {message["step"] for message in before.by_kind["done"]}
    assert step == max(before.rows)
    assert ranks.agent.sealed_steps() == {Share(2, 0): [step], Share(2, 1): [step]}
    assert before.markers == {}

    resume = ResumePoint(step=step, source="memory", is_durable=False, world_size=2)
    calm_run = resized(ranks, a_run(ranks, tmp_path / "calm", 2, 2, ENDLESS), 2, 2, resume)
    found = ranks.train(resized(ranks, run, 1, 2, resume), resume)
    assert_the_same_run(found, ranks.train(calm_run), step)


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_damaged_snapshot_of_the_former_world_is_told(ranks: Ranks, tmp_path: Path, is_elsewhere: bool) -> None:
    run = a_run(ranks, tmp_path, 2, 1, ENDLESS)
    _, resume = kill_the_last_rank(ranks, run)
    descriptor = ranks.agent._memory.slots.find(Share(2, 1), resume.step)
    assert descriptor is not None
    data = Slot(descriptor).data()
    data.view("u1")[data.nbytes // 2] ^= 1
    os.close(descriptor)
    ranks.agent.set_peer(SECRET, None)
    with Ranks(ranks.data) as other:
        reading = other if is_elsewhere else ranks
        with reading.start(resized(ranks, run, 1, 1, resume), resume, holder=ranks.agent) as live:
            heard = live.hear_until(lambda heard: 0 in heard.exits)
    (rejected,) = heard.by_kind["snapshot_rejected"]
    assert rejected["step"] == resume.step
    assert "checksum" in rejected["message"]
    assert not heard.rows
