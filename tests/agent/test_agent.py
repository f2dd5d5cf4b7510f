"""The node agent on real ranks: what it tells of their ends, and that nothing outlives it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from agent.processes import Watched, descendants, zygotes_below
from rank.ranks import SAFETY_S, Ranks, open_run

from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import verify
from orchestrator.rank.worker import RANK_OOM_SCORE_ADJ
from orchestrator.spec import ResumePoint

pytestmark = pytest.mark.real

ENDLESS = "train.steps=1000000"
PAIR = "cluster.num_workers=2"


def test_a_killed_rank_is_told_of_and_the_others_are_stopped(ranks, tmp_path):
    with ranks.start(open_run(ranks.data, tmp_path, ENDLESS, PAIR)) as live:
        pids = live.hear_pids()
        live.hear_until(lambda heard: len(heard.rows) > 2)
        with Watched(pids.values()) as watched:
            os.kill(pids[0], signal.SIGSTOP)  # else it might end by itself, for want of its peer
            os.kill(pids[1], signal.SIGKILL)
            live.hear_until(lambda heard: 1 in heard.exits)
            assert watched.living() == [pids[0]]
            assert ranks.agent.stop_ranks(SAFETY_S)
            assert watched.living() == []
        ends = live.hear_all().exits
    assert (ends[1]["signal"], ends[1]["exit_code"], ends[1]["is_stopped"]) == (signal.SIGKILL, None, False)
    assert (ends[0]["signal"], ends[0]["exit_code"], ends[0]["is_stopped"]) == (signal.SIGKILL, None, True)
    assert f"pid {pids[1]}" in ends[1]["tail"][0]


def test_everything_a_rank_said_comes_before_its_end(ranks, tmp_path):
    heard = ranks.train(open_run(ranks.data, tmp_path, "train.steps=3", PAIR))
    for rank in (0, 1):
        kinds = [kind for speaker, kind in heard.order if speaker == rank]
        assert kinds[-1] == "exited"
        assert [kind for kind in kinds if kind != "output"] == ["step", "step", "step", "saved", "done", "exited"]


def test_a_rank_that_fails_tells_what_and_where(ranks, tmp_path):
    nowhere = ResumePoint(step=3, checkpoint=str(tmp_path / "step_00000003"))
    with ranks.start(open_run(ranks.data, tmp_path, PAIR), nowhere) as live:
        heard = live.hear_all()
    assert {end["exit_code"] for end in heard.exits.values()} == {1}
    assert not any(end["is_stopped"] for end in heard.exits.values())
    said = heard.by_kind["failed"][0]
    assert said["message"].startswith("CheckpointError: ")
    assert "step 3 was never committed" in said["message"]
    assert "in restore" in said["trace"]
    assert any("Traceback" in line for line in heard.exits[0]["tail"])
    assert heard.rows == {}


def test_output_and_oom_order(ranks, tmp_path):
    with ranks.start(open_run(ranks.data, tmp_path, ENDLESS, PAIR)) as live:
        pids = live.hear_pids()
        assert sorted(pids) == [0, 1]
        live.hear_until(lambda heard: len(heard.rows) > 0)
        scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in pids.values()]
        assert scores == [RANK_OOM_SCORE_ADJ] * 2
        first = next(m for m in live.heard.by_kind["output"] if m["rank"] == 1)
        assert first["text"].startswith("rank 1 of 2 on ")
        assert first["node"] == 0


def test_the_store_outlives_attempts(ranks, tmp_path):
    run = open_run(ranks.data, tmp_path, "train.steps=1", PAIR)
    port = ranks.agent.start_store()
    first, second = ranks.train(run), ranks.train(run)
    assert first.attempt != second.attempt
    assert ranks.agent.start_store() == port


def test_drained_ranks_leave_at_one_step_with_a_save(ranks, tmp_path):
    run = open_run(ranks.data, tmp_path, ENDLESS, PAIR)
    with ranks.start(run) as live:
        live.hear_until(lambda heard: len(heard.rows) > 2)
        ranks.agent.leave("drain")
        heard = live.hear_all()
    heard.check_all_done()
    assert not any(end["is_stopped"] for end in heard.exits.values())
    ((step, is_drained),) = {(done["step"], done["is_drained"]) for done in heard.by_kind["done"]}
    assert is_drained
    assert step == max(heard.rows) > 2
    assert list(heard.markers) == [step]
    assert verify(Store(run.checkpoint_url), step) == []
    longer = open_run(ranks.data, tmp_path, f"train.steps={step + 2}", PAIR, like=run)
    assert sorted(ranks.train(longer, heard.resume_at(step)).rows) == [step + 1, step + 2]


def test_a_killed_zygote_takes_its_ranks_and_is_replaced(data, tmp_path):
    before = descendants()
    others = zygotes_below()
    with Ranks(data) as ranks:
        (zygote,) = zygotes_below() - others
        run = open_run(data, tmp_path, ENDLESS, PAIR)
        with ranks.start(run) as live:
            pids = live.hear_pids()
            live.hear_until(lambda heard: len(heard.rows) > 0)
            with Watched(descendants(zygote)) as watched:
                assert set(pids.values()) < set(watched.pids)  # the store, too
                os.kill(zygote, signal.SIGKILL)
                assert watched.living(SAFETY_S) == []
            ends = live.hear_all().exits
            assert {(end["signal"], end["is_stopped"]) for end in ends.values()} == {(signal.SIGKILL, False)}
            assert ranks.agent.stop_ranks(SAFETY_S)
        ranks.train(open_run(data, tmp_path, "train.steps=2", PAIR))
        with ranks.start(run) as live:
            live.hear_until(lambda heard: len(heard.rows) > 0)
            left = descendants() - before
            assert len(left) == 4  # zygote, store, two ranks
            with Watched(left) as watched:
                ranks.agent.close()
                assert watched.living(SAFETY_S) == []
    assert descendants() <= before


def test_a_stopped_zygote_holds_up_no_restart(data, tmp_path):
    """It can neither end ranks nor tell of their deaths."""
    others = zygotes_below()
    with Ranks(data) as ranks:
        (zygote,) = zygotes_below() - others
        with ranks.start(open_run(data, tmp_path, ENDLESS, PAIR)) as live:
            pids = live.hear_pids()
            live.hear_until(lambda heard: len(heard.rows) > 0)
            with Watched([zygote, *pids.values()]) as watched:
                os.kill(zygote, signal.SIGSTOP)
                assert ranks.agent.stop_ranks(SAFETY_S)
                assert watched.living(SAFETY_S) == []
            assert set(live.hear_all().exits) == {0, 1}
        assert len(ranks.train(open_run(data, tmp_path / "again", "train.steps=2", PAIR)).rows) == 2


def test_nothing_outlives_a_killed_agent(data, tmp_path):
    settings = json.dumps({"data": str(data.path), "root": str(tmp_path)})
    process = subprocess.Popen(
        [sys.executable, "-m", "agent.agent_process", settings],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "running\n"
        with Watched(descendants(process.pid)) as watched:
            assert len(watched.pids) == 4
            process.kill()
            assert watched.living(SAFETY_S) == []
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a canary that finds its GPU has nothing to say")
def test_where_cuda_can_not_be_forked_ranks_import_for_themselves(ranks, data, tmp_path):
    words = ("train.steps=3", PAIR)
    with Ranks(data) as other:
        problem = other.agent.check_cuda_fork()
        assert problem
        assert "CUDA" in problem or "NVIDIA" in problem
        cold = other.train(open_run(data, tmp_path / "cold", *words))
    assert cold.losses == ranks.train(open_run(data, tmp_path / "warm", *words)).losses
