"""A bit that changes in a live rank's memory: found, named where that can be, and the run is the one without it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rank.ranks import Data, Heard, LiveAttempt, Ranks, open_run
from slowing import held_once

from orchestrator.checkpoint.reader import CheckpointReader
from orchestrator.checkpoint.verify import logical_digest
from orchestrator.codec import decode
from orchestrator.control.anomalies import Anomaly, Kind
from orchestrator.spec import ResumePoint

pytestmark = pytest.mark.real

CORRUPT = str(Path(__file__).with_name("corrupt"))
STEPS = 24
WORDS = (f"train.steps={STEPS}", "train.global_batch_size=12", "optim.lr=3e-3")


@pytest.fixture(scope="module")
def corruptible(data: Data) -> Iterator[Ranks]:
    """Ranks in which signals flip bits: see corrupt/sitecustomize.py."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", CORRUPT, prepend=os.pathsep)
        with Ranks(data) as ranks:
            yield ranks


def learned(heard: Heard, first_step: int = 1) -> list[tuple[object, ...]]:
    return [
        (row.step, row.batch_digest, row.loss, row.grad_norm, row.rng_digest)
        for step, row in heard.rows.items()
        if step >= first_step
    ]


def final_digest(heard: Heard) -> str:
    return logical_digest(CheckpointReader.open(heard.checkpoint(STEPS), None))


def flip(live: LiveAttempt, rank: int, number: signal.Signals, after_step: int = 6) -> Anomaly:
    """The anomaly that all ranks leave with, after the signal."""
    pid = live.hear_pids()[rank]
    with held_once(pid, lambda: live.position(rank).step >= after_step):
        os.kill(pid, number)
    heard = live.hear_all()
    heard.check_all_done()
    said = [decode(Anomaly, message["anomaly"]) for message in heard.by_kind["anomaly"]]
    assert len(said) == heard.world_size
    assert len(set(said)) == 1
    return said[0]


def go_back(ranks: Ranks, live: LiveAttempt, anomaly: Anomaly) -> Heard:
    """The next attempt, as the controller would start it."""
    return ranks.train(live.heard.run, ResumePoint(step=anomaly.good_step, source="memory", branch=1))


@pytest.mark.parametrize(("stage", "every"), [(0, 5), (2, 1)])
def test_of_three_replicas_the_odd_one_is_named(corruptible: Ranks, tmp_path: Path, stage: int, every: int) -> None:
    words = (*WORDS, "train.steps=1000000", "cluster.num_workers=3", f"parallel.zero_stage={stage}")
    run = open_run(corruptible.data, tmp_path, *words, f"fault.check_replicas_every_steps={every}")
    with corruptible.start(run) as live:
        anomaly = flip(live, 2, signal.SIGUSR1)
    assert (anomaly.kind, anomaly.ranks) == (Kind.replicas_differ, (2,))
    assert anomaly.step % every == 0
    assert anomaly.good_step == anomaly.step - every


def test_two_replicas_only_differ_and_the_run_goes_back(corruptible: Ranks, tmp_path: Path) -> None:
    words = (*WORDS, "cluster.num_workers=2", "parallel.zero_stage=2")
    calm = corruptible.train(open_run(corruptible.data, tmp_path / "calm", *words))
    run = open_run(corruptible.data, tmp_path / "bad", *words, "fault.check_replicas_every_steps=1")
    with corruptible.start(run) as live:
        anomaly = flip(live, 0, signal.SIGUSR1)
        after = go_back(corruptible, live, anomaly)
    assert (anomaly.kind, anomaly.ranks) == (Kind.replicas_differ, ())
    assert learned(after) == learned(calm, anomaly.good_step + 1)
    assert final_digest(after) == final_digest(calm)


@pytest.mark.parametrize(
    ("stage", "extra"), [(0, ()), (2, ()), (3, ()), (2, ("parallel.offload=optimizer", "train.precision=bf16"))]
)
def test_a_step_that_is_done_again_leaves_no_trace_and_a_flipped_bit_shows(
    corruptible: Ranks, tmp_path: Path, stage: int, extra: tuple[str, ...]
) -> None:
    words = (*WORDS, "cluster.num_workers=2", f"parallel.zero_stage={stage}", "model.dropout=0.1", *extra)
    calm = corruptible.train(open_run(corruptible.data, tmp_path / "calm", *words))
    run = open_run(corruptible.data, tmp_path / "checked", *words, "fault.recheck_every_steps=1")
    with corruptible.start(run) as live:
        anomaly = flip(live, 1, signal.SIGUSR2)
        before, after = live.heard, go_back(corruptible, live, anomaly)
    assert (anomaly.kind, anomaly.good_step) == (Kind.step_not_repeatable, anomaly.step - 1)
    assert learned(before)[: anomaly.step] == learned(calm)[: anomaly.step]
    assert learned(after) == learned(calm, anomaly.step)
    assert final_digest(after) == final_digest(calm)
    assert max(row.recheck_s or 0 for row in after.rows.values()) > 0
