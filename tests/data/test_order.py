"""The data order as arithmetic: a permutation, the same batches for every world, a decent shuffle."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.order import (
    PADDING_ROW,
    GlobalOrder,
    eval_rows_at,
    rows_at,
    window_of_step,
)
from orchestrator.spec import BatchShape

SEEDS = st.integers(min_value=0, max_value=2**63)


def shape(global_batch_size: int, micro_batch_size: int, world_size: int) -> BatchShape:
    return BatchShape(
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        world_size=world_size,
        seq_len=8,
    )


SHAPES = st.builds(shape, st.integers(1, 60), st.integers(1, 7), st.integers(1, 9))


def global_batch(step: int, order: GlobalOrder, batch: BatchShape, skipped: tuple[int, ...] = ()) -> list[int]:
    """What all ranks together read at a step, in the order of the global batch."""
    rows = [rows_at(step, rank, order, batch, skipped) for rank in range(batch.world_size)]
    # [world_size, micro_steps, micro_batch_size] -> micro-steps first
    flat = np.stack(rows).transpose(1, 0, 2).reshape(-1)
    return flat.tolist()


@given(num_rows=st.integers(1, 2000), seed=SEEDS, epoch=st.integers(0, 50))
def test_an_epoch_is_a_permutation(num_rows, seed, epoch):
    rows = GlobalOrder(num_rows, seed).rows_of_window(epoch, num_rows)
    assert sorted(rows.tolist()) == list(range(num_rows))


@given(
    num_rows=st.integers(1, 400),
    seed=SEEDS,
    step=st.integers(0, 10**6),
    batch=SHAPES,
)
def test_every_world_reads_the_same_global_batch(num_rows, seed, step, batch):
    order = GlobalOrder(num_rows, seed)
    global_batch_size = batch.global_batch_size
    expected = order.rows_of_window(step, global_batch_size).tolist()
    read = global_batch(step, order, batch)
    assert read[:global_batch_size] == expected
    assert set(read[global_batch_size:]) <= {PADDING_ROW}
    assert len(read) == batch.micro_steps * batch.micro_batch_size * batch.world_size


@given(num_rows=st.integers(1, 100), seed=SEEDS, global_batch_size=st.integers(1, 50))
def test_no_row_comes_twice_in_an_epoch_however_windows_straddle(num_rows, seed, global_batch_size):
    order = GlobalOrder(num_rows, seed)
    windows = -(-2 * num_rows // global_batch_size)
    stream = np.concatenate([order.rows_of_window(window, global_batch_size) for window in range(windows)])
    assert sorted(stream[:num_rows].tolist()) == list(range(num_rows))
    assert sorted(stream[num_rows : 2 * num_rows].tolist()) == list(range(num_rows))


@given(step=st.integers(0, 200), skipped=st.sets(st.integers(0, 250)))
def test_window_of_step_counts_the_windows_that_are_not_skipped(step, skipped):
    kept = (window for window in itertools.count() if window not in skipped)
    assert window_of_step(step, tuple(skipped)) == next(itertools.islice(kept, step, None))


def test_a_skipped_window_moves_all_later_ones_up():
    order, batch = GlobalOrder(1000, 7), shape(12, 2, 3)
    assert global_batch(3, order, batch, skipped=(1,)) == global_batch(4, order, batch)


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {
        (seed, epoch): tuple(GlobalOrder(1000, seed).rows_of_window(epoch, 1000).tolist())
        for seed in (0, 1, 2**40, -5)
        for epoch in range(4)
    }
    assert len(set(orders.values())) == len(orders)


def test_the_order_is_fixed_for_good():
    """A resumed run must read on in the order that an older version began."""
    assert GlobalOrder(1000, 1234).rows_of_window(0, 8).tolist() == [467, 62, 671, 155, 835, 406, 184, 349]
    assert GlobalOrder(10**12, 1234).rows_of_window(10**9, 4).tolist() == [
        171095131414,
        42913808702,
        547467247352,
        429728753483,
    ]


@pytest.mark.parametrize("num_rows", [2, 3, 5, 17, 10**6 + 3, 10**12, 2**62])
def test_rows_lie_in_the_split(num_rows):
    rows = GlobalOrder(num_rows, 3).rows_of_window(12, 100)
    assert rows.dtype == np.int64
    assert rows.min() >= 0
    assert rows.max() < num_rows


def test_a_seek_to_a_far_step_gives_what_walking_there_gives():
    order = GlobalOrder(977, 5)
    walked = [row for window in range(300) for row in order.rows_of_window(window, 13).tolist()]
    assert order.rows_of_window(299, 13).tolist() == walked[-13:]


@pytest.mark.parametrize("num_rows", [64, 1000, 4099])
def test_shuffle_is_even(num_rows):
    """Where a row lands is uniform over the epoch: chi-square over 16 x 16 cells, summed over epochs.

    The statistic has 15 * 15 degrees of freedom: 225 on average, standard deviation 21; 6 of them above is
    what chance does once in a hundred million trials.
    """
    order, cells = GlobalOrder(num_rows, 99), 16
    table = np.zeros((cells, cells))
    for epoch in range(60):
        rows = order.rows_of_window(epoch, num_rows)
        np.add.at(table, (np.arange(num_rows) * cells // num_rows, rows * cells // num_rows), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    assert ((table - expected) ** 2 / expected).sum() < 225 + 6 * 21.2


@pytest.mark.parametrize("num_rows", [1000, 4096])
def test_neighbours_are_torn_apart(num_rows):
    """Rows that follow each other in the order are as far apart as random ones: a third of the split."""
    gaps = [
        np.abs(np.diff(GlobalOrder(num_rows, 5).rows_of_window(epoch, num_rows))).mean() / num_rows
        for epoch in range(40)
    ]
    assert abs(np.mean(gaps) - 1 / 3) < 0.01


def test_every_order_of_three_rows_comes_up():
    counts = dict.fromkeys(itertools.permutations(range(3)), 0)
    for epoch in range(1200):
        counts[tuple(GlobalOrder(3, 1).rows_of_window(epoch, 3).tolist())] += 1
    assert min(counts.values()) > 130  # 200 each on average, standard deviation 13


@given(num_rows=st.integers(0, 100), micro_batch_size=st.integers(1, 7), world_size=st.integers(1, 9))
def test_evaluation_reads_each_row_once_in_equal_micro_steps(num_rows, micro_batch_size, world_size):
    batch = shape(1, micro_batch_size, world_size)
    parts = [eval_rows_at(rank, num_rows, batch) for rank in range(world_size)]
    assert len({part.shape for part in parts}) == 1
    rows = np.concatenate([part.reshape(-1) for part in parts])
    assert sorted(rows[rows != PADDING_ROW].tolist()) == list(range(num_rows))


@pytest.mark.parametrize("num_rows", [0, -1, 2**62 + 1])
def test_an_impossible_number_of_rows_is_refused(num_rows):
    with pytest.raises(ValueError, match="num_rows"):
        GlobalOrder(num_rows, 1)
