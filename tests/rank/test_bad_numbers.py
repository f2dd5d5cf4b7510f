"""A window of noise among real ranks: they leave before they keep what it did, and the run without it is the run that
was told from the start to leave it out."""

from pathlib import Path

import pytest
from noisy import copy_with_noise
from rank.ranks import Data, Ranks, open_run

from orchestrator.checkpoint.reader import CheckpointReader
from orchestrator.checkpoint.verify import logical_digest
from orchestrator.codec import decode
from orchestrator.control.anomalies import Anomaly, Kind
from orchestrator.spec import ResumePoint

pytestmark = pytest.mark.real

WINDOW, STEPS = 20, 32
WORDS = (
    f"train.steps={STEPS}",
    "train.seq_len=64",
    "train.global_batch_size=16",
    "optim.lr=3e-3",
    "cluster.num_workers=2",
    "fault.spike_threshold=6",
    "fault.spike_window=16",
)


@pytest.fixture(scope="module")
def noisy(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Data:
    path = tmp_path_factory.mktemp("noisy") / "data"
    copy_with_noise(ranks.data.path, path, window=WINDOW, batch=16, seq_len=64, seed=1234)
    return Data(path, ranks.data.manifest)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_spike_is_skipped_as_if_it_had_never_been_read(
    ranks: Ranks, noisy: Data, tmp_path: Path, stage: int
) -> None:
    words = (*WORDS, f"parallel.zero_stage={stage}")
    told = ranks.train(open_run(noisy, tmp_path / "told", *words), ResumePoint(skipped_windows=(WINDOW,)))

    run = open_run(noisy, tmp_path / "found", *words)
    with ranks.start(run) as live:
        first = live.hear_all()
    first.check_all_done()
    anomalies = [decode(Anomaly, message["anomaly"]) for message in first.by_kind["anomaly"]]
    assert anomalies[0] == anomalies[1]
    assert len(anomalies) == 2, "every rank says it"
    assert (anomalies[0].kind, anomalies[0].step) == (Kind.loss_spike, WINDOW + 1)
    assert {max(steps) for steps in ranks.agent.sealed_steps().values()} == {WINDOW}, "nothing of it is kept"

    back = ResumePoint(step=WINDOW, source="memory", skipped_windows=(WINDOW,), branch=1)
    second = ranks.train(run, back)
    rows = {step: row for step, row in first.rows.items() if step <= WINDOW} | second.rows
    assert list(rows) == list(told.rows) == list(range(1, STEPS + 1))
    for step, row in rows.items():
        other = told.rows[step]
        assert (row.batch_digest, row.loss, row.grad_norm, row.lr, row.rng_digest) == (
            other.batch_digest,
            other.loss,
            other.grad_norm,
            other.lr,
            other.rng_digest,
        )
    readers = [CheckpointReader.open(heard.checkpoint(STEPS), None) for heard in (told, second)]
    assert logical_digest(readers[0]) == logical_digest(readers[1])
    marker = readers[1].marker
    assert (marker.branch, marker.data.skipped_windows) == (1, (WINDOW,))
    assert len(marker.recent_losses) == 16


def test_a_restart_looks_at_the_same_losses(ranks: Ranks, noisy: Data, tmp_path: Path) -> None:
    """From the checkpoint right before the noise: the window of losses came with it."""
    run = open_run(noisy, tmp_path, *WORDS, "checkpoint.every_steps=20")
    with ranks.start(run) as live:
        first = live.hear_until(lambda heard: WINDOW in heard.markers and len(heard.exits) == 2)
    with ranks.start(run, first.resume_at(WINDOW)) as live:
        second = live.hear_all()
    messages = [decode(Anomaly, heard.by_kind["anomaly"][0]["anomaly"]) for heard in (first, second)]
    assert messages[0] == messages[1]


def test_numbers_that_run_away(ranks: Ranks, tmp_path: Path) -> None:
    run = open_run(ranks.data, tmp_path, "cluster.num_workers=2", "parallel.zero_stage=2", "optim.lr=1e30")
    with ranks.start(run) as live:
        heard = live.hear_all()
    heard.check_all_done()
    anomaly = decode(Anomaly, heard.by_kind["anomaly"][0]["anomaly"])
    assert anomaly.kind in (Kind.loss_not_finite, Kind.grad_norm_not_finite)
    assert max(heard.rows) == anomaly.step == anomaly.good_step + 1
