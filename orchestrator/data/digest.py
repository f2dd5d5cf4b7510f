"""The batch digest (contract, DESIGN section 5): what was read, as a sum that ignores order and ranks."""

from collections.abc import Iterable

import numpy as np
import xxhash
from numpy.typing import NDArray

_MODULUS = 2**64
_WORDS_OF_ROW_ID = 2


class RowBuffer:
    """Memory for rows as they are hashed: the id as little-endian int64, then the tokens as little-endian uint32.

    It is filled and hashed again and again, so that each row costs one call.
    """

    def __init__(self, num_rows: int, row_tokens: int) -> None:
        num_words = _WORDS_OF_ROW_ID + row_tokens
        words = np.zeros((num_rows, num_words + num_words % 2), dtype="<u4")  # each row begins at a multiple of 8
        self.row_ids: NDArray[np.int64] = words[:, :_WORDS_OF_ROW_ID].view("<i8")[:, 0]
        """int64[num_rows], to be written."""
        self.tokens: NDArray[np.uint32] = words[:, _WORDS_OF_ROW_ID:num_words]
        """uint32[num_rows, row_tokens], to be written."""
        self._hashed = [memoryview(row).cast("B") for row in words[:, :num_words]]

    def __len__(self) -> int:
        return len(self._hashed)

    def digests(self, num_rows: int) -> bytes:
        """xxh3_64 of each of the first rows, 8 bytes each: `sums_of_digests` adds them up."""
        return b"".join(map(xxhash.xxh3_64_digest, self._hashed[:num_rows]))


def sums_of_digests(digests: bytes, num_sums: int) -> list[int]:
    """Sums modulo 2**64 of `num_sums` equal parts of what `RowBuffer.digests` gave."""
    each = np.frombuffer(digests, dtype=">u8").astype(np.uint64)
    sums: list[int] = each.reshape(num_sums, each.size // num_sums).sum(axis=1, dtype=np.uint64).tolist()
    return sums


def rows_digest(row_ids: NDArray[np.int64], tokens: NDArray[np.integer]) -> int:
    """Sum modulo 2**64, over rows with an id >= 0, of xxh3_64 of the row's id and tokens.

    row_ids: int64[n]; tokens: [n, seq_len + 1] of any integer type. Digests of parts of a batch add up to the
    digest of the whole.
    """
    is_sample = row_ids >= 0
    buffer = RowBuffer(int(is_sample.sum()), tokens.shape[1])
    buffer.row_ids[:] = row_ids[is_sample]
    buffer.tokens[:] = tokens[is_sample]
    return sums_of_digests(buffer.digests(len(buffer)), 1)[0]


def sum_digests(digests: Iterable[int]) -> int:
    """Digest of the whole from the digests of disjoint parts (ranks, micro-batches)."""
    return sum(digests) % _MODULUS


def format_digest(digest: int) -> str:
    """As metrics.jsonl shows it: 16 hexadecimal digits."""
    return f"{digest:016x}"
