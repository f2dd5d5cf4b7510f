"""One rank's batches, read ahead of the training loop by a thread."""

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.digest import samples_digests, sum_digests
from orchestrator.data.order import GlobalOrder, Rows, rows_of_steps
from orchestrator.data.shards import TokenReader
from orchestrator.errors import DataError
from orchestrator.spec import BatchShape

ROWS_AT_ONCE = 4096
"""Row ids computed at a time, for as many steps as they make."""
CHUNK_BYTES = 2**20
"""Tokens read at a time, as int64, for as many steps as they make: a hand-over between two threads costs more than
reading a small batch."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward pass reads."""

    tokens: NDArray[np.int64]
    """[micro_batch_size, seq_len + 1]: inputs are [:, :-1], targets [:, 1:]. Padding rows hold zeros."""
    weights: NDArray[np.float32]
    """[micro_batch_size]: 1 for a sample, 0 for a padding row."""


@dataclass(frozen=True, slots=True)
class StepBatch:
    """All that one rank reads for one optimizer step."""

    step: int
    micro: tuple[MicroBatch, ...]
    digest: int
    """This rank's part of the batch digest."""


def read_step(reader: TokenReader, rows: Rows, step: int) -> StepBatch:
    """Read rows int64[micro_steps, micro_batch_size], with -1 for padding, in one gather."""
    return read_steps(reader, rows[None], step)[0]


def read_steps(reader: TokenReader, rows: Rows, first_step: int) -> list[StepBatch]:
    """Read rows int64[steps, micro_steps, micro_batch_size] of consecutive steps, in one gather."""
    flat = rows.reshape(-1)
    is_sample = flat >= 0
    is_full = bool(is_sample.all())
    row_ids = flat if is_full else flat[is_sample]
    samples = reader.rows(row_ids)
    if is_full:
        tokens = samples.astype(np.int64)
    else:
        tokens = np.zeros((flat.size, reader.row_tokens), dtype=np.int64)
        tokens[is_sample] = samples
    tokens = tokens.reshape(*rows.shape, reader.row_tokens)
    weights = is_sample.astype(np.float32).reshape(rows.shape)
    digests = samples_digests(row_ids, samples)
    samples_of_step = np.count_nonzero(rows.reshape(len(rows), -1) >= 0, axis=1).tolist()
    return [
        StepBatch(
            step=step,
            micro=tuple(MicroBatch(*pair) for pair in zip(tokens[i], weights[i], strict=True)),
            digest=sum_digests(itertools.islice(digests, samples_of_step[i])),
        )
        for i, step in enumerate(range(first_step, first_step + len(rows)))
    ]


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
        self._chunk: deque[StepBatch] = deque()
        """What is left of the chunk in hand."""
        self._ready: SimpleQueue[list[StepBatch] | Exception] = SimpleQueue()
        self._permits: SimpleQueue[bool] = SimpleQueue()
        """One to read each chunk; False ends the thread. Two such queues cost less than a Queue with a limit."""
        for _ in range(1 + -(-prefetch // self._chunk_steps)):
            self._permits.put(True)
        self._thread = threading.Thread(
            target=self._read_ahead, args=(start_step,), name=f"batches-rank-{rank}", daemon=True
        )
        self._thread.start()

    def next(self) -> StepBatch:
        """The next step's batch. Raises, once, what stopped the thread: DataError with its cause."""
        if self._is_closed:
            raise RuntimeError("the loader is closed")
        if not self._chunk:
            found = self._ready.get()
            if isinstance(found, Exception):
                self._fail(found)
            self._chunk.extend(found)
            self._permits.put(True)
        return self._chunk.popleft()

    def close(self) -> None:
        """Stop the thread and wait for it; may be called again."""
        self._is_closed = True
        self._permits.put(False)
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
                if not self._permits.get() or self._is_closed:
                    return
                self._read_chunk(rows, step)
                step += len(rows)
        except Exception as error:
            self._ready.put(error)

    def _read_chunk(self, rows: Rows, step: int) -> None:
        try:
            self._ready.put(read_steps(self._reader, rows, step))
        except Exception:  # one by one, so that the batches before the bad one are still given
            for i in range(len(rows)):
                self._ready.put([read_step(self._reader, rows[i], step + i)])

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
