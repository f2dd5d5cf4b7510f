"""Sweeps on real processes: killed in every way, they are the sweep that nothing disturbed."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from sweeping import Sweep, assert_same_sweep, ray_process
from typed import Driver, SharedRay, Typist
from typists import clean_environment, joined_typist

from orchestrator.sweep.study import TrialState

pytestmark = pytest.mark.real

STEPS = 80
TRIAL_WORDS = [
    "model=tiny",
    "train.seq_len=64",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
    f"train.steps={STEPS}",
    "checkpoint.every_steps=10",
    "tracking.wandb.mode=disabled",
]
SIX = ["optim.lr=1e-3,3e-3,1e-2", "optim.warmup_steps=5,10"]


@pytest.fixture
def sweeper(tmp_path: Path, data: Path) -> Iterator[Typist]:
    """Types where there is no Ray: the sweep starts its own."""
    typist = Typist(tmp_path, clean_environment(), [*TRIAL_WORDS, f"data.path={data}"])
    yield typist
    typist.close()


@pytest.fixture
def joining_sweeper(tmp_path: Path, data: Path, shared_ray: SharedRay) -> Iterator[Typist]:
    """Types on the shared cluster."""
    typist = joined_typist(tmp_path, data, shared_ray)
    typist.words = [*TRIAL_WORDS, f"data.path={data}"]
    yield typist
    typist.close()


def type_sweep(typist: Typist, sweep: Sweep, *words: str) -> Driver:
    return typist.start("sweep", *typist.words, f"run.root={sweep.root}", *words)


def kill_a_worker(driver: Driver, sweep: Sweep) -> None:
    def strike() -> bool:
        run = sweep.run(sweep.trial_within(driver, 5, STEPS - 30))
        pid = run.rank_pid(run.newest_attempt(), 0)
        return bool(pid) and has_killed(pid)

    driver.wait_for("a rank to kill", strike)


def kill_a_trial(driver: Driver, sweep: Sweep) -> None:
    def strike() -> bool:
        return has_killed(sweep.trial_pid(sweep.trial_within(driver, 5, STEPS - 30)))

    driver.wait_for("a trial to kill", strike)


def has_killed(pid: int) -> bool:
    """False where it has ended since somebody looked."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def kill_ray(driver: Driver, sweep: Sweep) -> None:
    sweep.trial_within(driver, 5, STEPS - 30)
    ray_process(driver, "gcs_server").kill()


def kill_the_driver(driver: Driver, sweep: Sweep) -> None:
    sweep.trial_within(driver, 5, STEPS - 30)
    driver.process.kill()
    driver.process.wait()


Kill = Callable[[Driver, Sweep], None]


def disturbed(typist: Typist, sweep: Sweep, words: Sequence[str], kills: Sequence[Kill]) -> None:
    """Run a sweep to its end, killing in order; where its driver is killed, the command is typed again."""
    driver = type_sweep(typist, sweep, *words)
    for kill in kills:
        kill(driver, sweep)
        if driver.process.poll() is not None:
            driver = type_sweep(typist, sweep, *words)
    driver.finish()


def test_a_sweep_killed_in_every_way_is_the_same_sweep(
    sweeper: Typist, joining_sweeper: Typist, tmp_path: Path
) -> None:
    calm, killed = Sweep(tmp_path / "calm"), Sweep(tmp_path / "killed")
    type_sweep(joining_sweeper, calm, *SIX, "sweep.max_concurrent=2").finish()
    disturbed(sweeper, killed, SIX, [kill_a_worker, kill_ray, kill_the_driver])
    assert_same_sweep(killed, calm)
    assert all(trial.failures == 0 for trial in killed.study().trials.values())
    assert sum(trial.starts for trial in killed.study().trials.values()) > 6
    finished = [record for record in killed.records() if record.get("state") == "finished"]
    assert len(finished) == 6
    before = killed.records()
    driver = type_sweep(sweeper, killed, *SIX)
    driver.finish()
    assert killed.records() == before
    assert "best        " in driver.output


def test_a_joined_sweeps_trials_outlive_its_driver(joining_sweeper: Typist, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs")
    steps = 100_000  # a trial that does not end by itself, however long the next driver takes to start
    words = ["optim.lr=1e-3,3e-3", f"train.steps={steps}", "sweep.max_concurrent=1"]
    driver = type_sweep(joining_sweeper, sweep, *words)
    trial = sweep.trial_within(driver, 5, steps)
    driver.process.kill()
    driver.process.wait()
    again = type_sweep(joining_sweeper, sweep, *words)
    again.wait_for("the trial to be taken over", lambda: "taken over" in again.output)
    cancel = joining_sweeper.type("cancel", str(sweep.folder.path))
    assert f"the driver of sweep {sweep.folder.sweep_id} (pid {again.process.pid}) was told to save" in cancel.output
    assert again.wait() == 75
    assert joining_sweeper.type("cancel", str(sweep.folder.path)).process.returncode == 2
    assert sweep.study().trials[trial.id].starts == 1
    assert sweep.run(trial).newest_attempt() == 1
    assert sweep.study().trials[trial.id].state is TrialState.interrupted
    assert not sweep.study().in_state(TrialState.running)


def test_a_trial_that_others_beat_is_stopped_at_its_rung(joining_sweeper: Typist, tmp_path: Path) -> None:
    sweep, checkpoints = Sweep(tmp_path / "runs"), tmp_path / "checkpoints"
    words = ["optim.lr=1e-2,1e-6", "sweep.pruner=asha", "sweep.min_steps=20", "sweep.max_concurrent=1"]
    type_sweep(joining_sweeper, sweep, *words, "train.steps=400", f"checkpoint.url={checkpoints}").finish()
    good, bad = sweep.study().trials.values()
    assert (good.state, bad.state) == (TrialState.finished, TrialState.pruned)
    assert list(good.rungs) == [20, 60, 180]
    assert list(bad.rungs) == [20]
    assert 20 <= bad.step < 400
    assert bad.rungs[20] is not None
    assert bad.value is not None
    assert sweep.summary()["best"]["id"] == good.id
    assert sorted(path.name for path in checkpoints.iterdir()) == sorted([good.id, bad.id])
    config = yaml.safe_load(sweep.run(bad).folder.config.read_text())
    assert config["tracking"]["wandb"]["group"] == sweep.folder.sweep_id
    assert config["run"]["id"] == bad.id


@pytest.mark.soak
def test_twenty_four_trials_killed_in_every_way(sweeper: Typist, joining_sweeper: Typist, tmp_path: Path) -> None:
    words = ["optim.lr=1e-3,2e-3,3e-3,5e-3,7e-3,1e-2", "optim.warmup_steps=5,10", "run.seed=1,2", "parallel=zero2"]
    calm, killed = Sweep(tmp_path / "calm"), Sweep(tmp_path / "killed")
    type_sweep(joining_sweeper, calm, *words, "sweep.max_concurrent=2").finish()
    disturbed(sweeper, killed, words, [kill_a_trial, kill_a_worker, kill_ray, kill_the_driver] * 3)
    assert len(calm.study().trials) == 24
    assert_same_sweep(killed, calm)


@pytest.mark.soak
def test_asha_finds_as_good_a_trial_with_a_fraction_of_the_steps(joining_sweeper: Typist, tmp_path: Path) -> None:
    words = [
        "optim.lr=tag(log,interval(1e-5,1e-1))", "optim.warmup_steps=2,10", "train.steps=270",
        "sweep.algorithm=random", "sweep.trials=24", "sweep.max_concurrent=2", "train.eval_every_steps=10",
    ]  # fmt: skip
    whole, pruned = Sweep(tmp_path / "whole"), Sweep(tmp_path / "pruned")
    type_sweep(joining_sweeper, whole, *words).finish()
    type_sweep(joining_sweeper, pruned, *words, "sweep.pruner=asha").finish()
    steps = [sum(trial.step for trial in sweep.study().trials.values()) for sweep in (whole, pruned)]
    best = [sweep.summary()["best"]["value"] for sweep in (whole, pruned)]
    print(f"ASHA: {steps[1]} steps instead of {steps[0]}, eval_loss {best[1]:.4f} instead of {best[0]:.4f}")
    assert steps[0] == 24 * 270
    assert steps[1] < 0.6 * steps[0]
    assert best[1] <= best[0] * 1.02
