"""An attempt that begins with standbys is the one that begins with ranks forked anew, to the bit."""

import os
import signal
from pathlib import Path

import pytest
from rank.ranks import SAFETY_S, Heard, LiveAttempt, Ranks, open_run

from orchestrator.checkpoint.slots import Share, newest_common_step
from orchestrator.control.opening import OpenRun
from orchestrator.observe.metrics import StepRow
from orchestrator.spec import ResumePoint

pytestmark = pytest.mark.real

MORE_STEPS = 5


def a_run(ranks: Ranks, root: Path, stage: int, steps: int, like: OpenRun | None = None) -> OpenRun:
    words = ["cluster.num_workers=2", f"parallel.zero_stage={stage}", "optim.schedule_steps=1000", "optim.lr=3e-3"]
    return open_run(ranks.data, root, *words, f"train.steps={steps}", like=like)


def newest_step(ranks: Ranks) -> int:
    sealed = ranks.agent.sealed_steps()
    step = newest_common_step([sealed[Share(2, rank)] for rank in range(2)])
    assert step is not None
    return step


def kill_rank(live: LiveAttempt, rank: int) -> None:
    os.kill(live.hear_pids()[rank], signal.SIGKILL)
    live.hear_until(lambda heard: rank in heard.exits)


def learned(row: StepRow) -> tuple[object, ...]:
    return row.step, row.batch_digest, row.loss, row.grad_norm, row.lr, row.tokens


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_nothing_changes(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    run = a_run(ranks, tmp_path / "killed", stage, 100_000)
    with ranks.start(run) as live:
        live.hear_until(lambda heard: len(heard.rows) >= 3)
        ranks.prepare_standbys(live)
        standbys = standby_pids(ranks)
        kill_rank(live, 1)
    step = newest_step(ranks)

    resume = ResumePoint(step=step, source="memory", is_durable=False)
    ended = a_run(ranks, tmp_path / "killed", stage, step + MORE_STEPS, like=run)
    with ranks.start(ended, resume, standby=live.heard.attempt) as after:
        assert {*after.hear_pids().values()} == standbys
        after.hear_all()
    after.heard.check_all_done()
    calm = ranks.train(a_run(ranks, tmp_path / "calm", stage, step + MORE_STEPS))

    assert sorted(after.heard.rows) == list(range(step + 1, step + MORE_STEPS + 1))
    for row in after.heard.rows.values():
        assert learned(row) == learned(calm.rows[row.step])


def standby_pids(ranks: Ranks) -> set[int]:
    return {rank.pid for rank in ranks.agent._standbys.ranks if rank.pid is not None}


def test_those_that_nobody_uses_are_ended(ranks: Ranks, tmp_path: Path) -> None:
    run = a_run(ranks, tmp_path, 2, 100_000)
    with ranks.start(run) as live:
        live.hear_until(lambda heard: len(heard.rows) >= 3)
        ranks.prepare_standbys(live)
        first = standby_pids(ranks)
        ranks.prepare_standbys(live)  # others in their place
        assert not first & standby_pids(ranks)
        kill_rank(live, 0)
    step = newest_step(ranks)
    ended = a_run(ranks, tmp_path, 2, step + 1, like=run)
    with ranks.start(ended, ResumePoint(step=step, source="memory", is_durable=False)) as after:
        assert not {*after.hear_pids().values()} & standby_pids(ranks)
        after.hear_all()
    assert standby_pids(ranks) == set()


def test_the_death_of_one_is_told(ranks: Ranks, tmp_path: Path) -> None:
    with ranks.start(a_run(ranks, tmp_path, 2, 100_000)) as live:
        live.hear_until(lambda heard: len(heard.rows) >= 3)
        ranks.prepare_standbys(live)
        os.kill(min(standby_pids(ranks)), signal.SIGKILL)
        live.hear_until(lambda heard: bool(heard.by_kind["standby_lost"]))
        rows = len(live.heard.rows)
        live.hear_until(lambda heard: len(heard.rows) > rows)  # training does not mind
        attempt = live.heard.attempt
        assert ranks.agent.stop_ranks(SAFETY_S)
    step = newest_step(ranks)
    resume = ResumePoint(step=step, source="memory", is_durable=False)
    with ranks.start(live.heard.run, resume, standby=attempt) as after:
        heard: Heard = after.hear_until(lambda heard: bool(heard.exits))
    assert "stood by" in next(iter(heard.exits.values()))["reason"]
