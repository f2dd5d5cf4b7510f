"""A run that starts from somebody's weights, under real DeepSpeed: its optimizer is as fresh as its moments are."""

from pathlib import Path

import pytest
from rank.ranks import Data, Heard, Ranks, open_run, repeat_one_token

from launch.ckpt import run as ckpt
from orchestrator.control.initial import initial_point

pytestmark = pytest.mark.real

STEPS = 3
LATE = 100
WORDS = ("optim.schedule=constant", "optim.warmup_steps=0", "optim.betas=[0.9,0.999]", "optim.lr=3e-3")


@pytest.fixture
def monotonous(data: Data, tmp_path: Path) -> Data:
    """All rows are alike, so that no step differs from another by what it reads."""
    return repeat_one_token(data, tmp_path / "monotonous")


def imported(ranks: Ranks, data: Data, folder: Path) -> dict[int, str]:
    """Step -> a starting point that holds the same weights, and no moments."""
    run = open_run(data, folder, *WORDS, "run.id=source", "train.steps=2")
    ranks.train(run)
    assert ckpt(["export", run.checkpoint_url, str(folder / "plain")]) == 0
    urls = {step: str(folder / f"start-{step}") for step in (0, LATE)}
    for step, url in urls.items():
        assert ckpt(["import", str(folder / "plain"), "--to", url, "--step", str(step)]) == 0
    return urls


def losses_from(heard: Heard, step: int) -> list[float]:
    return [row.loss for at, row in sorted(heard.rows.items()) if at > step]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_weights_without_moments_start_alike_at_any_step(
    ranks: Ranks, monotonous: Data, tmp_path: Path, stage: int
) -> None:
    """Adam corrects moments by the updates since they were zero, not by the run's steps: else the first updates of a
    run that starts at step 100 are three times too large. A resume goes on with the same count."""
    urls = imported(ranks, monotonous, tmp_path)
    found = {}
    for step, url in urls.items():
        words = (*WORDS, f"run.id=from-{step}", f"checkpoint.init_from={url}", f"parallel.zero_stage={stage}")
        run = open_run(monotonous, tmp_path, *words, f"train.steps={step + STEPS}")
        first = ranks.train(run, initial_point(run.config.checkpoint, run.plan.model))
        longer = open_run(monotonous, tmp_path, *words, f"train.steps={step + 2 * STEPS}", like=run)
        again = ranks.train(longer, first.resume_at(step + STEPS))
        found[step] = losses_from(first, step) + losses_from(again, step + STEPS)
    assert len(found[0]) == 2 * STEPS
    assert found[0] == found[LATE]
    assert len(set(found[0])) == 2 * STEPS
