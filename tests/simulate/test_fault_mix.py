"""The mix is the reported one, the rate follows from the number of GPUs, and a seed draws the same again."""

import itertools
from collections import Counter

import numpy as np
import pytest

from orchestrator.simulate.faults import REPORTED, UNINJECTED, Fault, Scenario, draw, reported_interval_s

YEAR = Scenario(steps=1, hours=24 * 365.0, interval_s=reported_interval_s(16_384), uninjected=0)


def test_one_in_three_hours_at_16_384_gpus_and_in_proportion_elsewhere() -> None:
    assert reported_interval_s(16_384) == 3 * 3600
    assert reported_interval_s(2_048) == 24 * 3600


def test_a_year_has_the_reported_number_and_mix() -> None:
    drawn = draw(YEAR, np.random.default_rng(1))
    assert len(drawn) == pytest.approx(365 * 8, rel=0.06)
    counts = Counter(injection.fault for injection in drawn)
    for fault, share in REPORTED.items():
        assert counts[fault] / len(drawn) == pytest.approx(share, abs=0.03)
    assert sum(REPORTED.values()) == pytest.approx(1.0)
    assert all(a.at_s <= b.at_s for a, b in itertools.pairwise(drawn))


def test_every_kind_that_nobody_injects_comes_up() -> None:
    crowded = Scenario(steps=1, hours=2.0, interval_s=1e9, uninjected=3)
    kinds = {i.fault for seed in range(200) for i in draw(crowded, np.random.default_rng(seed))}
    assert kinds == set(UNINJECTED) == set(Fault) - set(REPORTED)


def test_a_seed_draws_the_same_again() -> None:
    assert draw(YEAR, np.random.default_rng(7)) == draw(YEAR, np.random.default_rng(7))
    assert draw(YEAR, np.random.default_rng(7)) != draw(YEAR, np.random.default_rng(8))
