"""Which rows a rank reads at a step, as a formula. Plan half: nothing is stored, any step costs the same.

A split's tokens form one stream; row r of it is tokens [r * seq_len, r * seq_len + seq_len + 1). The rows of
an epoch are read in a keyed random order, epoch after epoch, in windows of `global_batch_size`: position p of
the run is index p % num_rows of epoch p // num_rows, so a window may straddle epochs.

The order within an epoch is a generalised Feistel network (Black and Rogaway, "Ciphers with arbitrary
finite domains", 2002): an index is split into two digits of about sqrt(num_rows), each of which is shifted in
turn by a keyed hash of the other. What falls outside of num_rows is sent round again (cycle
walking): rare, because the digits' domain exceeds num_rows by less than its square root.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.spec import BatchShape

PADDING_ROW = -1
"""Stands where a rank has no sample: reads nothing, weighs nothing."""

_ROUNDS = 8
_MAX_ROWS = 2**62

Rows = NDArray[np.int64]
_Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class GlobalOrder:
    """The order in which a run with `seed` reads a split of `num_rows` rows, epoch after epoch."""

    num_rows: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_rows <= _MAX_ROWS:
            raise ValueError(f"num_rows={self.num_rows} must be in 1..2**62")

    def rows_of_window(self, window: int, global_batch_size: int) -> Rows:
        """Row ids of a whole global batch, in order: int64[global_batch_size]."""
        first = window * global_batch_size
        return self.rows_of_positions(np.arange(first, first + global_batch_size, dtype=np.int64))

    def rows_of_positions(self, positions: Rows) -> Rows:
        """Row ids at positions of the run (0, 1, 2, ... over all epochs): int64, same shape."""
        if not positions.size:
            return positions
        epochs = positions // np.int64(self.num_rows)
        indices = positions - epochs * np.int64(self.num_rows)
        first, last = int(epochs.min()), int(epochs.max())
        if first == last:
            return self._permute(indices.reshape(-1), first).reshape(positions.shape)
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = self._permute(indices[chosen], int(epoch))
        return rows

    def _permute(self, indices: Rows, epoch: int) -> Rows:
        low_size = math.isqrt(self.num_rows - 1) + 1
        high_size = -(-self.num_rows // low_size)
        keys = _round_keys(self.seed, epoch)
        values = _shuffle(indices.astype(np.uint64), high_size, low_size, keys)
        outside = np.flatnonzero(values >= self.num_rows)
        while outside.size:
            values[outside] = _shuffle(values[outside], high_size, low_size, keys)
            outside = outside[values[outside] >= self.num_rows]
        return values.astype(np.int64)


def window_of_step(step: int, skipped: Iterable[int] = ()) -> int:
    """The window that step `step` (from 0) trains on: the step-th that is not skipped.

    With windows 0 and 2 skipped, steps 0, 1, 2 read windows 1, 3, 4.
    """
    window = step
    for skipped_window in sorted(set(skipped)):
        if skipped_window > window:
            break
        window += 1
    return window


def rows_at(step: int, rank: int, order: GlobalOrder, batch: BatchShape, skipped: Iterable[int] = ()) -> Rows:
    """Row ids that `rank` reads at step `step` (from 0): int64[micro_steps, micro_batch_size].

    Depends on the seed, the step and the rank's slice only, so a run resumed on another world size reads the
    same global batch. Micro-step k, slot j of rank r is position (k * world_size + r) * micro_batch_size + j
    of it; past its end stands PADDING_ROW. 8 samples, 2 ranks, micro-batches of 2: rank 1 takes 2, 3, 6, 7.
    """
    rows: Rows = rows_of_steps(range(step, step + 1), rank, order, batch, skipped=skipped)[0]
    return rows


def rows_of_steps(
    steps: range,
    rank: int,
    order: GlobalOrder,
    batch: BatchShape,
    *,
    skipped: Iterable[int] = (),
) -> Rows:
    """`rows_at` of consecutive steps: int64[len(steps), micro_steps, micro_batch_size]."""
    in_batch = _positions_of_rank(rank, batch.micro_steps, batch)
    is_sample = in_batch < batch.global_batch_size
    windows = _windows_of_steps(steps, skipped)
    positions = windows[:, None] * batch.global_batch_size + in_batch[is_sample]
    if is_sample.all():
        return order.rows_of_positions(positions).reshape(len(steps), *in_batch.shape)
    rows = np.full((len(steps), *in_batch.shape), PADDING_ROW, dtype=np.int64)
    rows[:, is_sample] = order.rows_of_positions(positions)
    return rows


def _windows_of_steps(steps: range, skipped: Iterable[int]) -> Rows:
    """`window_of_step` of each."""
    windows = np.arange(steps.start, steps.stop, dtype=np.int64)
    for skipped_window in sorted(set(skipped)):
        windows += windows >= skipped_window
    return windows


def eval_rows_at(rank: int, num_rows: int, batch: BatchShape) -> Rows:
    """Rows 0..num_rows-1 over the ranks: int64[micro_steps, micro_batch_size], padded by PADDING_ROW.

    Every rank makes the same number of micro-steps: 5 rows, 2 ranks, micro-batches of 2 make 2 of them.
    """
    micro_steps = -(-num_rows // (batch.micro_batch_size * batch.world_size))
    rows = _positions_of_rank(rank, micro_steps, batch)
    return np.where(rows < num_rows, rows, np.int64(PADDING_ROW))


def _positions_of_rank(rank: int, micro_steps: int, batch: BatchShape) -> Rows:
    micro_step = np.arange(micro_steps, dtype=np.int64)[:, None]
    slot = np.arange(batch.micro_batch_size, dtype=np.int64)[None, :]
    return (micro_step * batch.world_size + rank) * batch.micro_batch_size + slot


def _round_keys(seed: int, epoch: int) -> _Words:
    """64 random bits per round; every (seed, epoch) has its own."""
    text = f"{seed}:{epoch}".encode()
    digest = hashlib.blake2b(text, digest_size=8 * _ROUNDS, person=b"phalanx-order").digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def _shuffle(values: _Words, high_size: int, low_size: int, keys: _Words) -> _Words:
    """One pass of the network: a permutation of 0..high_size*low_size-1."""
    high = values // np.uint64(low_size)
    low = values - high * np.uint64(low_size)
    hashed, spare = np.empty_like(values), np.empty_like(values)
    for round_of_pass in range(0, _ROUNDS, 2):
        high += _hash(low, keys[round_of_pass], hashed, spare)
        _reduce(high, np.uint64(high_size), spare)
        low += _hash(high, keys[round_of_pass + 1], hashed, spare)
        _reduce(low, np.uint64(low_size), spare)
    high *= np.uint64(low_size)
    high += low
    return high


def _hash(values: _Words, key: np.uint64, out: _Words, spare: _Words) -> _Words:
    """63 mixed bits of each value and the key (after SplitMix64's finaliser): so that sums don't overflow."""
    np.bitwise_xor(values, key, out=out)
    out *= np.uint64(0xBF58476D1CE4E5B9)
    out ^= np.right_shift(out, np.uint64(27), out=spare)
    out *= np.uint64(0x94D049BB133111EB)
    out ^= np.right_shift(out, np.uint64(31), out=spare)
    out >>= np.uint64(1)
    return out


def _reduce(values: _Words, size: np.uint64, spare: _Words) -> None:
    """values %= size; numpy's division by a scalar is vectorised, its remainder is not (7 times slower)."""
    np.floor_divide(values, size, out=spare)
    spare *= size
    values -= spare
