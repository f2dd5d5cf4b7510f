"""Seeded schedules of faults on real processes: whoever is struck, how, and amid what, it is the calm run.

PHALANX_SEEDS=17 or 100-149 are the seeds of the soak. A schedule is drawn from its seed alone, so that is its replay:
    PHALANX_SEEDS=17 pytest -m soak -s tests/e2e/test_fault_schedules.py
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rehearsing import Rehearsal
from schedules import CI_SEEDS, seeds_in
from typed import Run, SharedRay
from typists import clean_environment

SOAK_SEEDS = seeds_in(os.environ.get("PHALANX_SEEDS", "0-199"))


@pytest.fixture(scope="module")
def rehearsal(
    tmp_path_factory: pytest.TempPathFactory, data: Path, shared_ray: SharedRay, reference: Run
) -> Iterator[Rehearsal]:
    """Afterwards nothing of any run is left, on this machine or in Ray."""
    with Rehearsal(tmp_path_factory.mktemp("schedules"), data, shared_ray, reference) as rehearsal:
        yield rehearsal
    rehearsal.check_nothing_is_left()
    script = str(Path(__file__).with_name("left_in_ray.py"))
    environment = clean_environment() | shared_ray.environment
    found = subprocess.run([sys.executable, script], env=environment, stdout=subprocess.PIPE, check=True)
    assert json.loads(found.stdout) == {"agents": 0, "groups": 0}


@pytest.fixture(scope="module")
def ten(rehearsal: Rehearsal) -> Rehearsal:
    rehearsal.begin(CI_SEEDS)
    return rehearsal


@pytest.mark.real
@pytest.mark.parametrize("seed", CI_SEEDS)
def test_a_run_through_a_schedule_of_faults_is_the_undisturbed_run(ten: Rehearsal, seed: int) -> None:
    outcome = ten.outcome(seed)
    print(outcome)
    assert outcome.problems == [], outcome


@pytest.mark.real
def test_most_blows_fell_amid_what_was_asked_for(ten: Rehearsal) -> None:
    struck = [each for seed in CI_SEEDS for each in ten.outcome(seed).struck]
    assert sum(each.is_inside for each in struck) > 0.7 * len(struck)


@pytest.mark.soak
def test_200_schedules(rehearsal: Rehearsal) -> None:
    rehearsal.begin(SOAK_SEEDS)
    wrong, struck = [], []
    for seed in SOAK_SEEDS:
        outcome = rehearsal.outcome(seed)
        print(outcome, flush=True)
        struck += outcome.struck
        wrong += [outcome] if outcome.problems else []
    print(f"{sum(each.is_inside for each in struck)} of {len(struck)} blows fell amid what was asked for")
    assert not wrong, "\n".join(map(str, wrong))
