"""The batch digest against the contract's words, computed a second way."""

import struct

import numpy as np
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.digest import format_digest, rows_digest, sum_digests


def digest_in_plain_python(rows: list[tuple[int, list[int]]]) -> int:
    total = 0
    for row_id, tokens in rows:
        if row_id >= 0:
            total += xxhash.xxh3_64(struct.pack(f"<q{len(tokens)}I", row_id, *tokens)).intdigest()
    return total % 2**64


ROWS = st.lists(
    st.tuples(st.integers(-1, 2**62), st.lists(st.integers(0, 2**16 - 1), min_size=5, max_size=5)), min_size=1
)


@given(rows=ROWS, dtype=st.sampled_from([np.uint16, np.uint32, np.int64]))
def test_digest_is_what_the_contract_says(rows, dtype):
    ids = np.array([row_id for row_id, _ in rows], dtype=np.int64)
    tokens = np.array([row for _, row in rows], dtype=dtype)
    assert rows_digest(ids, tokens) == digest_in_plain_python(rows)


@given(rows=ROWS, seed=st.integers(0, 100), cut=st.integers(0, 10))
def test_digest_ignores_order_and_adds_up(rows, seed, cut):
    ids = np.array([row_id for row_id, _ in rows], dtype=np.int64)
    tokens = np.array([row for _, row in rows], dtype=np.uint16)
    order = np.random.default_rng(seed).permutation(len(rows))
    parts = [order[:cut], order[cut:]]
    assert sum_digests(rows_digest(ids[part], tokens[part]) for part in parts) == rows_digest(ids, tokens)


def test_digest_is_shown_with_16_digits():
    assert format_digest(0xABC) == "0000000000000abc"
    assert rows_digest(np.array([-1]), np.zeros((1, 4), np.int64)) == 0
