import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from saving import random_state, save

from orchestrator.checkpoint.commit import committed_steps, prune, steps_to_prune
from orchestrator.checkpoint.retention import Retention, checkpoints_to_delete
from orchestrator.checkpoint.store import Store

STATE = random_state({"w": (5,)})
TENS = [10, 20, 30, 40, 50, 60]
LOSS = {10: 5.0, 20: 1.0, 30: 3.0, 40: 1.0, 50: math.nan}


@pytest.mark.parametrize(
    ("steps", "retention", "deleted"),
    [
        ([], Retention(keep_last=3), []),
        ([10], Retention(keep_last=1), []),
        ([10, 20], Retention(keep_last=1), [10]),
        ([30, 10, 20], Retention(keep_last=2), [10]),
        ([10, 20, 30], Retention(keep_last=9), []),
        ([10, 10, 20], Retention(keep_last=1), [10]),
        (TENS, Retention(keep_last=0, keep_best=1), []),
        (TENS, Retention(keep_last=1, keep_every_steps=20), [10, 30, 50]),
        (TENS, Retention(keep_last=1, keep_every_steps=100), [10, 20, 30, 40, 50]),
        ([0, 10, 20], Retention(keep_last=1, keep_every_steps=100), [10]),
        (TENS, Retention(keep_last=1, keep_best=1), [10, 20, 30, 50]),
        (TENS, Retention(keep_last=1, keep_best=2), [10, 30, 50]),
        (TENS, Retention(keep_last=1, keep_best=9), [50]),
        (TENS, Retention(keep_last=2, keep_every_steps=30, keep_best=1), [10, 20]),
    ],
)
def test_table(steps, retention, deleted):
    assert checkpoints_to_delete(steps, retention, LOSS.get) == deleted


def test_without_a_metric_nothing_is_best():
    assert checkpoints_to_delete([10, 20], Retention(keep_last=1, keep_best=1)) == [10]


@given(
    st.lists(st.integers(0, 50)),
    st.builds(
        Retention, keep_last=st.integers(0, 9), keep_every_steps=st.integers(0, 9), keep_best=st.integers(0, 9)
    ),
    st.dictionaries(st.integers(0, 50), st.floats()),
)
def test_every_rule_only_adds_to_what_is_kept(steps, retention, metric):
    deleted = checkpoints_to_delete(steps, retention, metric.get)
    kept = set(steps) - {*deleted}
    newest = sorted(set(steps))
    assert sorted(set(deleted)) == deleted
    assert not steps or max(steps) in kept
    assert kept >= set(newest[-retention.keep_last :] if retention.keep_last else newest)
    if retention.keep_every_steps:
        assert kept >= {step for step in steps if step % retention.keep_every_steps == 0}
    worst_kept = [metric[step] for step in kept if step in metric and math.isfinite(metric[step])]
    if retention.keep_best and deleted:
        better = [s for s in deleted if s in metric and worst_kept and metric[s] < min(worst_kept)]
        assert better == []


@pytest.mark.parametrize("field", ["keep_last", "keep_every_steps", "keep_best"])
def test_negative_counts_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}=-1"):
        Retention(**{"keep_last": 1, field: -1})


def test_the_best_go_by_the_markers_loss(tmp_path):
    store = Store(tmp_path)
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 4.0)):
        save(store, step, STATE, loss=loss)
    retention = Retention(keep_last=1, keep_best=1)
    assert steps_to_prune(store, retention) == [10, 30]
    assert steps_to_prune(store, retention, {10: 0.5}.get) == [20, 30]
    assert prune(store, retention) == [10, 30]
    assert committed_steps(store) == [20, 40]
