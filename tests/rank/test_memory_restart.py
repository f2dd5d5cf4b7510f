"""A rank is killed and all start again from the agent's memory: the run is the one that nothing disturbed."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from rank.ranks import Heard, Ranks, open_run

from orchestrator.checkpoint.slots import Share, Slot, newest_common_step
from orchestrator.control.opening import OpenRun
from orchestrator.observe.metrics import StepRow
from orchestrator.spec import ResumePoint

pytestmark = pytest.mark.real

ENDLESS = "train.steps=100000"
"""The kill ends it, however late it comes."""
MORE_STEPS = 5
"""After the restart."""


def a_run(ranks: Ranks, root: Path, stage: int, steps: str, like: OpenRun | None = None) -> OpenRun:
    words = ["cluster.num_workers=2", f"parallel.zero_stage={stage}", "optim.schedule_steps=1000", "optim.lr=3e-3"]
    return open_run(ranks.data, root, *words, steps, like=like)


def learned(row: StepRow) -> tuple[object, ...]:
    return row.step, row.batch_digest, row.loss, row.grad_norm, row.lr, row.tokens


def kill_a_rank(ranks: Ranks, run: OpenRun, rank: int) -> tuple[Heard, int]:
    """What the run said until `rank` was killed in mid-run, and the newest step that memory has of both ranks."""
    with ranks.start(run) as live:
        pids = live.hear_pids()
        live.hear_until(lambda heard: len(heard.rows) >= 6)
        os.kill(pids[rank], signal.SIGKILL)
        live.hear_until(lambda heard: rank in heard.exits)
    assert live.heard.exits[rank]["signal"] == signal.SIGKILL
    step = newest_common_step(sealed_of_both(ranks))
    assert step is not None
    return live.heard, step


def sealed_of_both(ranks: Ranks) -> list[Sequence[int]]:
    sealed = ranks.agent.sealed_steps()  # the agent may know of more ranks, from wider runs before this one
    return [sealed[Share(2, rank)] for rank in range(2)]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_restart_from_memory_changes_nothing(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    run = a_run(ranks, tmp_path / "killed", stage, ENDLESS)
    before, step = kill_a_rank(ranks, run, rank=stage % 2)
    newest_row = max(before.rows)
    assert newest_row - 1 <= step <= newest_row + 1

    last = f"train.steps={step + MORE_STEPS}"
    resume = ResumePoint(step=step, source="memory", is_durable=False)
    after = ranks.train(a_run(ranks, tmp_path / "killed", stage, last, like=run), resume)
    calm = ranks.train(a_run(ranks, tmp_path / "calm", stage, last))

    assert sorted(after.rows) == list(range(step + 1, step + MORE_STEPS + 1))
    found = {**{s: row for s, row in before.rows.items() if s <= step}, **after.rows}
    again = after.by_kind["step_again"]
    assert sorted(message["rank"] for message in again) == [0, 1]
    assert {message["step"] for message in again} == {step}
    assert sum(message["loss_sum"] for message in again) / calm.rows[step].tokens == calm.rows[step].loss
    assert {message["grad_norm"] for message in again} == {calm.rows[step].grad_norm}
    found.setdefault(step, calm.rows[step])  # the row that `step_again` stands for
    assert [learned(found[s]) for s in sorted(found)] == [learned(calm.rows[s]) for s in sorted(calm.rows)]


def test_a_damaged_slot_is_told_and_the_one_before_it_serves(ranks: Ranks, tmp_path: Path) -> None:
    run = a_run(ranks, tmp_path, 1, ENDLESS)
    killed, step = kill_a_rank(ranks, run, rank=0)
    while not all(step - 1 in steps for steps in sealed_of_both(ranks)):  # it fell where one was writing over it
        killed, step = kill_a_rank(ranks, run, rank=0)
    descriptors, _ = ranks.agent._memory.slots.slots_for(Share(2, 1), None, 0)
    (slot,) = [slot for slot in map(Slot, descriptors) if slot.header().step == step and slot.is_sound()]
    data = slot.data()
    data.view("u1")[data.nbytes // 2] ^= 1
    with ranks.start(run, ResumePoint(step=step, source="memory", is_durable=False)) as live:
        heard = live.hear_until(lambda heard: 1 in heard.exits)
    (rejected,) = heard.by_kind["snapshot_rejected"]
    assert (rejected["rank"], rejected["step"]) == (1, step)
    assert "checksum" in rejected["message"]
    assert rejected["is_emptied"]
    assert heard.exits[1]["exit_code"] == 1
    assert not heard.rows

    sealed = sealed_of_both(ranks)
    assert step in sealed[0]
    before = newest_common_step(sealed)
    assert before == step - 1
    rest = a_run(ranks, tmp_path, 1, f"train.steps={before + MORE_STEPS}", like=run)
    after = ranks.train(rest, ResumePoint(step=before, source="memory", is_durable=False))
    assert sorted(after.rows) == list(range(before + 1, before + MORE_STEPS + 1))
    again = [s for s in after.rows if s in killed.rows]
    assert [learned(after.rows[s]) for s in again] == [learned(killed.rows[s]) for s in again]


def test_a_slot_that_is_gone_is_told(ranks: Ranks, tmp_path: Path) -> None:
    run = a_run(ranks, tmp_path, 2, ENDLESS)
    _, step = kill_a_rank(ranks, run, rank=1)
    with ranks.start(run, ResumePoint(step=step + 1000, source="memory", is_durable=False)) as live:
        heard = live.hear_until(lambda heard: len(heard.by_kind["snapshot_rejected"]) == 2)
    assert {message["step"] for message in heard.by_kind["snapshot_rejected"]} == {step + 1000}
    assert not any(message["is_emptied"] for message in heard.by_kind["snapshot_rejected"])
