"""The batch digest (contract, DESIGN section 5): what was read, as a sum that ignores order and ranks."""

from collections.abc import Iterable, Iterator

import numpy as np
import xxhash
from numpy.typing import NDArray

_MODULUS = 2**64
_WORDS_OF_ROW_ID = 2


def rows_digest(row_ids: NDArray[np.int64], tokens: NDArray[np.integer]) -> int:
    """Sum modulo 2**64, over rows with an id >= 0, of xxh3_64 of the row's id and tokens.

    row_ids: int64[n]; tokens: [n, seq_len + 1] of any integer type. Hashed is the id as little-endian int64,
    then the tokens as little-endian uint32. Digests of parts of a batch add up to the digest of the whole.
    """
    is_sample = row_ids >= 0
    return sum_digests(samples_digests(row_ids[is_sample], tokens[is_sample]))


def samples_digests(row_ids: NDArray[np.int64], tokens: NDArray[np.integer]) -> Iterator[int]:
    """xxh3_64 of each row, in order; all rows are samples. Shapes as in `rows_digest`."""
    words = np.empty((row_ids.size, _WORDS_OF_ROW_ID + tokens.shape[1]), dtype="<u4")
    words[:, :_WORDS_OF_ROW_ID] = row_ids.astype("<i8").view("<u4").reshape(-1, _WORDS_OF_ROW_ID)
    words[:, _WORDS_OF_ROW_ID:] = tokens
    return map(xxhash.xxh3_64_intdigest, words)


def sum_digests(digests: Iterable[int]) -> int:
    """Digest of the whole from the digests of disjoint parts (ranks, micro-batches)."""
    return sum(digests) % _MODULUS


def format_digest(digest: int) -> str:
    """As metrics.jsonl shows it: 16 hexadecimal digits."""
    return f"{digest:016x}"
