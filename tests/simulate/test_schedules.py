"""Crowded schedules of a 2,000-GPU job: nothing that must hold is violated. `soak` has the full counts."""

import dataclasses
from collections import Counter

import pytest
from simulated import assert_clean, setting

from orchestrator.simulate.campaign import Rehearsals, predict, rehearse
from orchestrator.simulate.faults import Fault
from orchestrator.simulate.outcome import goodput_of, totals

GPUS = 2_000
CHUNKS = 8
"""So that two workers share them."""
CI_SCHEDULES = 4_000
ALL_SCHEDULES = 10_000


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_schedules_of_a_2_000_gpu_job_violate_nothing(chunk: int) -> None:
    rehearsals = Rehearsals(setting(GPUS))
    for seed in range(chunk, CI_SCHEDULES, CHUNKS):
        assert_clean(rehearsals.run(seed))


@pytest.mark.soak
def test_10_000_schedules_of_a_2_000_gpu_job_violate_nothing() -> None:
    courses = list(rehearse(setting(GPUS), range(ALL_SCHEDULES)))
    print(totals(courses))
    for course in courses:
        assert_clean(course)


@pytest.mark.soak
def test_a_year_of_a_16_384_gpu_job_violates_nothing() -> None:
    course = predict(setting(16_384), days=365, seed=1)
    print(course.injected, goodput_of(course))
    assert_clean(course)
    assert course.injected.total() > 2_000


def test_a_node_whose_eight_ranks_are_simulated_one_by_one_violates_nothing() -> None:
    rehearsals = Rehearsals(setting(GPUS, ranks_per_node=8))
    for seed in range(8):
        assert_clean(rehearsals.run(seed))


def test_the_same_seed_is_the_same_course_event_by_event() -> None:
    first, second = (dataclasses.asdict(Rehearsals(setting()).run(11)) for _ in range(2))
    assert first == second
    assert first["attempts"] > 1


def test_small_schedules_inject_every_kind_of_fault_and_recover_from_every_tier() -> None:
    rehearsals = Rehearsals(setting())
    injected: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for seed in range(150):
        course = rehearsals.run(seed)
        assert_clean(course)
        injected += course.injected
        sources.update(recovery["source"] for recovery in course.recoveries)
    assert set(injected) == set(Fault)
    assert {"memory", "peer", "remote"} <= set(sources)


def test_a_prediction_books_all_of_its_time_and_tells_what_faults_cost() -> None:
    told: list[float] = []
    course = predict(setting(16_384), days=2, seed=1, on_progress=told.append)
    assert_clean(course)
    assert 0.9 < goodput_of(course) < 1.0
    assert sum(course.spent_s.values()) == pytest.approx(course.wall_s, abs=60)
    assert course.injected.total() == pytest.approx(16, abs=10)
    assert told == sorted(told) and told[-1] == 1.0
