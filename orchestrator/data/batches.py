"""One rank's batches, read ahead of the training loop by a thread."""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.digest import samples_digest
from orchestrator.data.order import GlobalOrder, Rows, rows_of_steps
from orchestrator.data.shards import TokenReader
from orchestrator.errors import DataError
from orchestrator.spec import BatchShape

ROWS_AT_ONCE = 4096
"""Row ids computed at a time, for as many steps as they make."""


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
    micro = tuple(MicroBatch(*pair) for pair in zip(tokens, weights, strict=True))
    return StepBatch(step=step, micro=micro, digest=samples_digest(row_ids, samples))


class BatchLoader:
    """Batches of `rank` from `start_step` on, without end; a thread reads `prefetch` of them ahead.

    Use it from one thread, as a context manager or with `close`.
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
        self._is_closed = False
        self._ready: SimpleQueue[StepBatch | Exception] = SimpleQueue()
        self._permits: SimpleQueue[bool] = SimpleQueue()
        """One to read each batch; False ends the thread. Two such queues cost less than a Queue with a limit."""
        for _ in range(max(1, prefetch)):
            self._permits.put(True)
        self._thread = threading.Thread(
            target=self._read_ahead, args=(start_step,), name=f"batches-rank-{rank}", daemon=True
        )
        self._thread.start()

    def next(self) -> StepBatch:
        """The next step's batch. Raises, once, what stopped the thread: DataError with its cause."""
        if self._is_closed:
            raise RuntimeError("the loader is closed")
        batch = self._ready.get()
        if isinstance(batch, StepBatch):
            self._permits.put(True)
            return batch
        self._is_closed = True
        if isinstance(batch, DataError):
            raise batch
        raise DataError(f"rank {self._rank} could not read its batch: {batch!r}") from batch

    def close(self) -> None:
        """Stop the thread and wait for it; may be called again."""
        self._is_closed = True
        self._permits.put(False)
        self._thread.join()

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read_ahead(self, step: int) -> None:
        try:
            for rows in self._rows_from(step):
                if not self._permits.get() or self._is_closed:
                    return
                self._ready.put(read_step(self._reader, rows, step))
                step += 1
        except Exception as error:
            self._ready.put(error)

    def _rows_from(self, step: int) -> Iterator[Rows]:
        """Each step's rows from `step` on. The formula costs as much for thousands of rows as for a few, so it is
        asked for twice as many steps each time: the first batch waits for one step's rows only."""
        rows_per_step = self._batch.micro_steps * self._batch.micro_batch_size
        num_steps, most_steps = 1, max(1, ROWS_AT_ONCE // rows_per_step)
        while True:
            steps = range(step, step + num_steps)
            yield from rows_of_steps(steps, self._rank, self._order, self._batch, skipped=self._skipped)
            step += num_steps
            num_steps = min(2 * num_steps, most_steps)
