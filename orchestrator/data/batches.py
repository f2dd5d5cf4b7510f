"""One rank's batches, read ahead of the training loop by a thread."""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.digest import WORDS_OF_ROW_ID, row_words, words_digest
from orchestrator.data.order import GlobalOrder, Rows, rows_at
from orchestrator.data.shards import TokenReader
from orchestrator.errors import DataError
from orchestrator.spec import BatchShape


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
    words = row_words(flat[is_sample], reader.row_tokens)
    samples = words[:, WORDS_OF_ROW_ID:]
    reader.read_into(flat[is_sample], samples)
    if is_sample.all():
        tokens = samples.astype(np.int64)
    else:
        tokens = np.zeros((flat.size, reader.row_tokens), dtype=np.int64)
        tokens[is_sample] = samples
    tokens = tokens.reshape(*rows.shape, reader.row_tokens)
    weights = is_sample.astype(np.float32).reshape(rows.shape)
    micro = tuple(MicroBatch(*pair) for pair in zip(tokens, weights, strict=True))
    return StepBatch(step=step, micro=micro, digest=words_digest(words))


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
        self._prefetch = max(1, prefetch)
        self._ready: deque[StepBatch] = deque()
        self._error: Exception | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(
            target=self._read_ahead, args=(start_step,), name=f"batches-rank-{rank}", daemon=True
        )
        self._thread.start()

    def next(self) -> StepBatch:
        """The next step's batch. Raises, once, what stopped the thread: DataError with its cause."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error or self._is_closed)
            if self._ready:
                batch = self._ready.popleft()
                self._changed.notify_all()
                return batch
            error, self._error = self._error, None
            if error is None:
                raise RuntimeError("the loader is closed")
            self._is_closed = True
        if isinstance(error, DataError):
            raise error
        raise DataError(f"rank {self._rank} could not read its batch: {error!r}") from error

    def close(self) -> None:
        """Stop the thread and wait for it; may be called again."""
        with self._changed:
            self._is_closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read_ahead(self, step: int) -> None:
        try:
            while self._put(self._read(step)):
                step += 1
        except Exception as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _read(self, step: int) -> StepBatch:
        rows = rows_at(step, self._rank, self._order, self._batch, self._skipped)
        return read_step(self._reader, rows, step)

    def _put(self, batch: StepBatch) -> bool:
        """Queue a batch when there is room; False when the loader was closed."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < self._prefetch or self._is_closed)
            if self._is_closed:
                return False
            self._ready.append(batch)
            self._changed.notify_all()
            return True
