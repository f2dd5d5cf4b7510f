"""One rank's batches, read ahead of the training loop by a thread."""

import itertools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.digest import RowBuffer, sums_of_digests
from orchestrator.data.order import GlobalOrder, Rows, rows_of_steps
from orchestrator.data.shards import TokenReader
from orchestrator.errors import DataError
from orchestrator.spec import BatchShape

ROWS_AT_ONCE = 8192
"""Row ids computed at a time, for as many steps as they make."""
BLOCK_TOKENS = 2**16
"""Tokens gathered, hashed and converted at a time: they stay in a core's own cache meanwhile."""
CHUNK_BYTES = 2**21
"""Tokens handed over at a time, as int64, for as many steps as they make: a hand-over between two threads costs more
than reading a small batch."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward pass reads."""

    tokens: NDArray[np.int64]
    """[micro_batch_size, seq_len + 1]: inputs are [:, :-1], targets [:, 1:]. Padding rows hold zeros."""
    weights: NDArray[np.float32]
    """[micro_batch_size]: 1 for a sample, 0 for a padding row."""


class StepBatch(NamedTuple):
    """All that one rank reads for one optimizer step. (A named tuple is made in a fifth of a dataclass's time.)"""

    step: int
    micro: tuple[MicroBatch, ...]
    """From a BatchLoader: valid until its `next` is called again, which may write into the same memory."""
    digest: int
    """This rank's part of the batch digest."""


def read_step(reader: TokenReader, rows: Rows, step: int) -> StepBatch:
    """Read rows int64[micro_steps, micro_batch_size], with -1 for padding, into memory of their own."""
    is_sample = rows >= 0
    chunk = _Chunk(1, is_sample, reader.row_tokens)
    return next(chunk.fill(_Reading(reader, int(is_sample.sum())), rows[None], step))


class _Reading:
    """Reads rows a block at a time by way of memory that it uses again and again: nothing is allocated, so the kernel
    has no new page to give."""

    def __init__(self, reader: TokenReader, max_rows: int) -> None:
        self._reader = reader
        self._buffer = RowBuffer(max(1, min(max_rows, -(-BLOCK_TOKENS // reader.row_tokens))), reader.row_tokens)

    def read(self, row_ids: Rows, tokens: NDArray[np.int64], places: NDArray[np.int64] | None) -> bytes:
        """Write the rows to tokens[places], or to all of `tokens`; returns their digests, in order."""
        digests = []
        for start in range(0, row_ids.size, len(self._buffer)):
            ids = row_ids[start : start + len(self._buffer)]
            found = self._buffer.tokens[: ids.size]
            self._reader.read_into(found, ids)
            self._buffer.row_ids[: ids.size] = ids
            digests.append(self._buffer.digests(ids.size))
            block = slice(start, start + ids.size)
            tokens[block if places is None else places[block]] = found
        return b"".join(digests)


class _Chunk:
    """Memory for the batches of consecutive steps, which all have their padding in the same places."""

    def __init__(self, num_steps: int, is_sample: NDArray[np.bool_], row_tokens: int) -> None:
        """is_sample: bool[micro_steps, micro_batch_size]."""
        self._is_sample = is_sample
        self._tokens = np.zeros((num_steps, *is_sample.shape, row_tokens), dtype=np.int64)
        self._weights = is_sample.astype(np.float32)
        self._micro: list[tuple[MicroBatch, ...]] = []
        """Of the steps filled so far; the same from one filling to the next."""

    def fill(self, reading: _Reading, rows: Rows, first_step: int, place: int = 0) -> Iterator[StepBatch]:
        """Read rows int64[steps, micro_steps, micro_batch_size] to the `place`-th step's memory and after it."""
        num_steps, end = len(rows), place + len(rows)
        tokens = self._tokens[place:end].reshape(-1, self._tokens.shape[-1])
        places = None if self._is_sample.all() else np.flatnonzero(np.tile(self._is_sample.ravel(), num_steps))
        row_ids = rows.reshape(-1)
        digests = reading.read(row_ids if places is None else row_ids[places], tokens, places)
        for step_tokens in self._tokens[len(self._micro) : end]:
            self._micro.append(tuple(map(MicroBatch, step_tokens, self._weights)))
        sums = sums_of_digests(digests, num_steps)
        return map(StepBatch, itertools.count(first_step), self._micro[place:end], sums)


class BatchLoader:
    """Batches of `rank` from `start_step` on, without end; a thread reads at least `prefetch` of them ahead.

    Small batches are read many at a time, `CHUNK_BYTES` of them. Use it from one thread, as a context manager or
    with `close`.
    """

    def __init__(
        self,
        reader: TokenReader,
        order: GlobalOrder,
        batch: BatchShape,
        rank: int,
        *,
        start_step: int = 0,
        skipped: Iterable[int] = (),
        prefetch: int = 2,
    ) -> None:
        self._reader, self._order, self._batch, self._rank = reader, order, batch, rank
        self._skipped = tuple(skipped)
        rows_per_step = batch.micro_steps * batch.micro_batch_size
        self._chunk_steps = max(1, CHUNK_BYTES // (8 * reader.row_tokens * rows_per_step))
        self._is_closed = False
        self._batches: Iterator[StepBatch] = iter(())
        """What is left of the chunk in hand."""
        self._chunk: _Chunk | None = None
        """The chunk in hand."""
        self._ready: SimpleQueue[tuple[_Chunk, Iterator[StepBatch]] | Exception] = SimpleQueue()
        self._free: SimpleQueue[_Chunk | None] = SimpleQueue()
        """To be filled; None ends the thread. Two such queues cost less than a Queue with a limit."""
        is_sample = rows_of_steps(range(1), rank, order, batch)[0] >= 0
        for _ in range(2 + -(-prefetch // self._chunk_steps)):
            self._free.put(_Chunk(self._chunk_steps, is_sample, reader.row_tokens))
        self._reading = _Reading(reader, self._chunk_steps * rows_per_step)
        self._thread = threading.Thread(
            target=self._read_ahead, args=(start_step,), name=f"batches-rank-{rank}", daemon=True
        )
        self._thread.start()

    def next(self) -> StepBatch:
        """The next step's batch; the one before is not valid any more.

        Raises, once, what stopped the thread: DataError with its cause.
        """
        batch = next(self._batches, None)
        return self._next_chunk() if batch is None else batch

    def _next_chunk(self) -> StepBatch:
        if self._is_closed:
            raise RuntimeError("the loader is closed")
        if self._chunk is not None:
            self._free.put(self._chunk)
        found = self._ready.get()
        if isinstance(found, Exception):
            self._fail(found)
        self._chunk, self._batches = found
        return next(self._batches)

    def close(self) -> None:
        """Stop the thread and wait for it; may be called again."""
        self._is_closed = True
        self._batches = iter(())
        self._free.put(None)
        self._thread.join()

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _fail(self, error: Exception) -> NoReturn:
        self._is_closed = True
        if isinstance(error, DataError):
            raise error
        raise DataError(f"rank {self._rank} could not read its batch: {error!r}") from error

    def _read_ahead(self, step: int) -> None:
        try:
            for rows in self._chunks_from(step):
                chunk = self._free.get()
                if chunk is None or self._is_closed:
                    return
                self._read_chunk(chunk, rows, step)
                step += len(rows)
        except Exception as error:
            self._ready.put(error)

    def _read_chunk(self, chunk: _Chunk, rows: Rows, step: int) -> None:
        try:
            self._ready.put((chunk, chunk.fill(self._reading, rows, step)))
        except Exception:  # one by one, so that the batches before the bad one are still given
            batches: list[StepBatch] = []
            try:
                for i in range(len(rows)):
                    batches += chunk.fill(self._reading, rows[i : i + 1], step + i, place=i)
            finally:
                if batches:
                    self._ready.put((chunk, iter(batches)))

    def _chunks_from(self, step: int) -> Iterator[Rows]:
        """Rows of consecutive steps from `step` on, int64[steps, micro_steps, micro_batch_size], each time of twice
        as many, up to a whole chunk: the first batch waits for nothing but itself. The formula costs as much for
        thousands of rows as for a few, so it is asked for more than a chunk at a time."""
        rows_per_step = self._batch.micro_steps * self._batch.micro_batch_size
        num_steps, most_steps = 1, max(self._chunk_steps, ROWS_AT_ONCE // rows_per_step)
        while True:
            steps = range(step, step + num_steps)
            rows = rows_of_steps(steps, self._rank, self._order, self._batch, skipped=self._skipped)
            for start in range(0, num_steps, self._chunk_steps):
                yield rows[start : start + self._chunk_steps]
            step += num_steps
            num_steps = min(2 * num_steps, most_steps)
