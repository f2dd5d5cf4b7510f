"""Ranks that really hang: the watchdog names the one that the others wait for, and its stack is in its log."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rank.ranks import SAFETY_S, Data, Heard, LiveAttempt, Ranks, open_run

from orchestrator.agent.watchdog import Hang, Phase, judge

pytestmark = pytest.mark.real

VICTIM = 1
WORDS = (
    "train.steps=1000000",
    "cluster.num_workers=2",
    "parallel.zero_stage=2",
    "fault.hang_constant_s=1",
)
STUCK = str(Path(__file__).with_name("stuck"))


@pytest.fixture(scope="module")
def stuck_ranks(data: Data) -> Iterator[Ranks]:
    """Ranks that hang on signals: see stuck/sitecustomize.py."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", STUCK, prepend=os.pathsep)
        with Ranks(data) as ranks:
            yield ranks


def hear_hang(ranks: Ranks, live: LiveAttempt) -> Hang:
    live.hear_until(lambda heard: bool(heard.by_kind["stalled"]))
    hang = judge(ranks.agent.progress())
    assert hang is not None
    return hang


def dump(ranks: Ranks, live: LiveAttempt, why: str) -> tuple[dict[int, list[str]], dict[int, str]]:
    """(innermost frames, everything in the log from the dump on) of every rank."""
    seen = len(live.heard.by_kind["output"])
    tops = ranks.agent.dump_stacks(why)
    assert ranks.agent.stop_ranks(SAFETY_S)
    outputs = live.hear_all().by_kind["output"][seen:]
    return tops, {rank: "".join(m["text"] for m in outputs if m["rank"] == rank) for rank in tops}


@pytest.mark.parametrize(
    ("number", "frame"),
    [
        pytest.param(signal.SIGUSR1, "in hold_the_gil", id="a lock held with the GIL"),
        pytest.param(signal.SIGUSR2, "in wait_for_ever", id="a stuck loader"),
        pytest.param(signal.SIGURG, "in wait_for_a_message", id="a message that never comes"),
    ],
)
def test_the_hanging_rank_is_named_and_shows_its_stack(
    stuck_ranks: Ranks, tmp_path: Path, number: signal.Signals, frame: str
) -> None:
    with stuck_ranks.start(open_run(stuck_ranks.data, tmp_path, *WORDS)) as live:
        pids = live.hear_pids()
        live.hear_until(lambda heard: len(heard.rows) > 5)
        os.kill(pids[VICTIM], number)
        hang = hear_hang(stuck_ranks, live)
        assert [culprit.rank for culprit in hang.culprits] == [VICTIM]
        assert "the others wait for it" in hang.message()
        assert (hang.first.position.phase is Phase.data) == (number == signal.SIGUSR2)
        tops, logs = dump(stuck_ranks, live, hang.message())
    assert frame in logs[VICTIM]
    assert logs[VICTIM].startswith(f"stacks of all threads: {hang.message()}\n")
    assert "(most recent call first):" in logs[0]
    assert all(len(top) > 1 for top in tops.values())


def test_a_stopped_rank_is_named_though_it_can_not_answer(ranks: Ranks, tmp_path: Path) -> None:
    with ranks.start(open_run(ranks.data, tmp_path, *WORDS)) as live:
        pids = live.hear_pids()
        live.hear_until(lambda heard: len(heard.rows) > 5)
        os.kill(pids[VICTIM], signal.SIGSTOP)
        hang = hear_hang(ranks, live)
        assert [culprit.rank for culprit in hang.culprits] == [VICTIM]
        assert "stopped by a signal (SIGSTOP)" in hang.message()
        _, logs = dump(ranks, live, hang.message())
    assert f"process {pids[VICTIM]}" in logs[VICTIM]
    assert "does not answer" in logs[VICTIM]
    assert "(most recent call first):" in logs[0]
    assert {end["is_stopped"] for end in live.heard.exits.values()} == {True}


def test_a_file_system_that_does_not_answer(ranks: Ranks, tmp_path: Path) -> None:
    """Every rank waits in open(), for the validation shard: a FIFO that nobody writes."""
    data = Data(tmp_path / "data", ranks.data.manifest)
    shutil.copytree(ranks.data.path, data.path)
    run = open_run(data, tmp_path, *WORDS, "train.eval_every_steps=2")
    with ranks.start(run) as live:
        live.hear_until(lambda heard: len(heard.by_kind["evaluated"]) > 6)
        fifo = data.path / "fifo"
        os.mkfifo(fifo)
        fifo.rename(data.path / data.manifest.validation.shards[0].file)
        hang = hear_hang(ranks, live)
        assert [culprit.rank for culprit in hang.culprits] == [0, 1]
        assert {culprit.position.phase for culprit in hang.culprits} == {Phase.evaluation}
        assert "all ranks are equally far" in hang.message()
        tops, _ = dump(ranks, live, hang.message())
    assert all("in " in line for top in tops.values() for line in top)


def test_no_alarm_in_a_busy_life(ranks: Ranks, tmp_path: Path) -> None:
    """Evaluations and checkpoints, and the machine busy with four other processes."""
    words = ("train.steps=60", "train.eval_every_steps=3", "checkpoint.every_steps=5", *WORDS[1:])
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        heard: Heard = ranks.train(open_run(ranks.data, tmp_path, *words))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert heard.by_kind["stalled"] == []
    assert len(heard.rows) == 60
