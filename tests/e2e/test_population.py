"""Population-based training on real processes: a checkpoint changes hands, and a killed driver changes nothing."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from comparing import assert_bit_equal
from sweeping import Sweep
from typed import Driver, Run, SharedRay, Typist
from typists import joined_typist

from orchestrator.observe.ledger import read_events
from orchestrator.sweep.pbt import line_of, selection
from orchestrator.sweep.study import Trial, TrialState

pytestmark = pytest.mark.real

STEPS, INTERVAL = 40, 20
WORDS = [
    "model=tiny",
    "train.seq_len=64",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
    f"train.steps={STEPS}",
    "checkpoint.every_steps=5",
    "tracking.wandb.mode=disabled",
]
SEARCH = [
    "sweep=pbt", "sweep.population=3", f"sweep.interval_steps={INTERVAL}", "sweep.max_concurrent=2",
    "sweep.seed=7", "optim.lr=tag(log,interval(1e-6,3e-2))",
]  # fmt: skip


@pytest.fixture
def typist(tmp_path: Path, data: Path, shared_ray: SharedRay) -> Iterator[Typist]:
    typist = joined_typist(tmp_path, data, shared_ray)
    typist.words = [*WORDS, f"data.path={data}"]
    yield typist
    typist.close()


def type_sweep(typist: Typist, sweep: Sweep) -> Driver:
    return typist.start("sweep", *typist.words, f"run.root={sweep.root}", *SEARCH)


def rounds_of(sweep: Sweep) -> list[list[Trial]]:
    trials = list(sweep.study().trials.values())
    return [[t for t in trials if t.part is not None and t.part.round == number] for number in (0, 1)]


def test_the_worst_member_goes_on_from_the_best_one_s_checkpoint_whoever_is_killed(
    typist: Typist, tmp_path: Path
) -> None:
    sweep = Sweep(tmp_path / "runs")
    driver = type_sweep(typist, sweep)
    sweep.trial_within(driver, 3, INTERVAL - 3)
    driver.process.kill()
    driver.process.wait()
    again = type_sweep(typist, sweep)
    again.finish()

    first, second = rounds_of(sweep)
    assert [len(first), len(second)] == [3, 3]
    assert all(trial.state is TrialState.finished and trial.failures == 0 for trial in (*first, *second))
    ((best,), (worst,)) = selection(first, 0.2, maximise=False)
    taken = second[worst.part.member]
    assert taken.part.parent == best.id
    assert taken.parameters != best.parameters
    assert taken.parameters != worst.parameters
    assert all(t.part.parent == first[t.part.member].id for t in second if t.id != taken.id)

    run = sweep.run(taken)
    assert min(run.rows()) == INTERVAL + 1
    started = next(e for e in read_events(run.folder.events) if e["event"] == "attempt_started")
    assert started["resume_step"] == INTERVAL
    stays = second[best.part.member]
    assert run.rows()[INTERVAL + 1].loss == sweep.run(stays).rows()[INTERVAL + 1].loss  # the same weights and samples
    assert run.rows()[STEPS].loss != sweep.run(stays).rows()[STEPS].loss
    assert run.rows()[STEPS].loss < sweep.run(worst).rows()[INTERVAL].loss

    summary = sweep.summary()["best"]
    line = line_of(sweep.study().trials, sweep.study().trials[summary["id"]])
    assert [trial.part.steps for trial in line] == [INTERVAL, STEPS]
    assert again.output.count("schedule  ") == 2
    check_a_member_that_stays(typist, sweep, best, stays)
    before = sweep.records()
    type_sweep(typist, sweep).finish()
    assert sweep.records() == before


def check_a_member_that_stays(typist: Typist, sweep: Sweep, first: Trial, second: Trial) -> None:
    """Its two rounds are, to the last bit, the run that never stopped."""
    reference = Run(typist.scratch / "reference")
    words = [f"{key}={value}" for key, value in first.parameters.items()]
    driver = typist.start("train", *typist.words, f"run.root={reference.root}", *words)
    driver.finish()
    rounds = sweep.run(first).rows() | sweep.run(second).rows()
    assert list(rounds) == list(reference.rows())
    half = [row.loss for row in reference.rows().values()][INTERVAL:]
    assert [row.loss for row in sweep.run(second).rows().values()] == half
    assert json.dumps([row.batch_digest for row in rounds.values()]) == json.dumps(
        [row.batch_digest for row in reference.rows().values()]
    )


@pytest.mark.soak
def test_a_population_killed_four_times_is_the_one_that_nothing_disturbed(typist: Typist, tmp_path: Path) -> None:
    calm, killed = Sweep(tmp_path / "calm"), Sweep(tmp_path / "killed")
    type_sweep(typist, calm).finish()
    driver = type_sweep(typist, killed)
    for _ in range(4):
        killed.trial_within(driver, 1, STEPS - 5)
        driver.process.kill()
        driver.process.wait()
        driver = type_sweep(typist, killed)
    driver.finish()
    pairs = [[(t.id, t.parameters, t.part, t.value) for t in s.study().trials.values()] for s in (calm, killed)]
    assert pairs[0] == pairs[1]
    best = [s.study().trials[s.summary()["best"]["id"]] for s in (calm, killed)]
    assert_bit_equal(killed.run(best[1]), calm.run(best[0]))
