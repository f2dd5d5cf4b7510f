"""What is drawn: the same from the same seed, and in CI's ten every victim, way and moment."""

import itertools

from schedules import AT_STARTS, CI_SEEDS, KINDS, STAGES, STOPPED_AT, How, Moment, draw, seeds_in

ALL = [draw(seed) for seed in range(200)]
TEN = [draw(seed) for seed in CI_SEEDS]


def test_a_seed_draws_the_same_again() -> None:
    assert [draw(schedule.seed) for schedule in ALL] == ALL
    assert len({schedule.faults for schedule in ALL}) == len(ALL)


def test_ten_have_every_kind_of_blow_and_every_moment_at_one_stage() -> None:
    faults = [fault for schedule in TEN for fault in schedule.faults]
    assert {(fault.victim, fault.how) for fault in faults} == {(victim, how) for victim, how, _ in KINDS}
    assert {fault.moment for fault in faults} == {*Moment}
    assert {schedule.zero_stage for schedule in TEN} == {2}


def test_two_hundred_have_them_all_together() -> None:
    faults = [fault for schedule in ALL for fault in schedule.faults]
    drawn = {(fault.victim, fault.how, fault.moment) for fault in faults}
    possible = {
        (victim, how, moment) for victim, how, _ in KINDS for moment in (STOPPED_AT if how is How.stop else Moment)
    }
    assert drawn == possible
    assert {schedule.zero_stage for schedule in ALL} == {*STAGES}


def test_recovery_itself_is_struck() -> None:
    pairs = [pair for schedule in TEN for pair in itertools.pairwise(schedule.faults)]
    assert any(second.moment in AT_STARTS for _, second in pairs)


def test_seeds_are_read_as_ranges() -> None:
    assert seeds_in("17") == [17]
    assert seeds_in("3,100-102") == [3, 100, 101, 102]
