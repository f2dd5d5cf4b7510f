"""Between a device and a slot: every float at its place, whatever the parts' sizes, and damage found."""

import os
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.partition import StatePart
from orchestrator.checkpoint.layout import BYTES_PER_ELEMENT
from orchestrator.checkpoint.slots import CHUNK_BYTES, Slot, SlotShape, create_slot
from orchestrator.errors import CheckpointError
from orchestrator.rank.staging import CHUNK, Staging, chunks_of

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda:0", marks=needs_gpu)]
SIZES = (1, CHUNK - 1, 7, 2 * CHUNK + 5, CHUNK, 3)
"""Parts that end before, at and after the ends of chunks."""


def parts_of(sizes: Sequence[int], device: str, seed: int) -> list[StatePart]:
    generator = torch.Generator().manual_seed(seed)
    return [StatePart("master", torch.randn(size, generator=generator).to(device), ()) for size in sizes]


@pytest.fixture
def slot() -> Iterator[Slot]:
    shape = SlotShape((), sum(SIZES))
    slot = Slot(create_slot("staging", shape.slot_bytes))
    slot.format(shape)
    yield slot
    os.close(slot.descriptor)


@pytest.fixture
def staging(request: pytest.FixtureRequest) -> Iterator[Staging]:
    staging = Staging(torch.device(request.param), 3)
    yield staging
    staging.close()


@pytest.mark.parametrize("staging", DEVICES, indirect=True)
@pytest.mark.parametrize("seed", [1, 3, 5])
def test_what_was_saved_comes_back_to_the_bit(slot: Slot, staging: Staging, seed: int) -> None:
    device = str(staging._device)
    saved, loaded = parts_of(SIZES, device, seed), parts_of(SIZES, device, seed + 1)
    slot.begin(7, 1, {})
    staging.save(slot, saved)
    assert slot.is_sound()
    np.testing.assert_array_equal(slot.data(), np.concatenate([part.values.cpu().numpy() for part in saved]))
    staging.load(slot, loaded)
    assert all(torch.equal(a.values, b.values) for a, b in zip(saved, loaded, strict=True))


@pytest.mark.parametrize("staging", DEVICES, indirect=True)
@pytest.mark.parametrize("place", [0, CHUNK - 1, CHUNK, sum(SIZES) - 1])
def test_a_float_that_changed_is_found(slot: Slot, staging: Staging, place: int) -> None:
    device = str(staging._device)
    slot.begin(7, 1, {})
    staging.save(slot, parts_of(SIZES, device, 1))
    slot.data().view("<u4")[place] ^= 1
    with pytest.raises(CheckpointError, match="checksum"):
        staging.load(slot, parts_of(SIZES, device, 2))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([0, 1, 5, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK]), max_size=6))
def test_chunks_cover_every_float_once_and_in_order(sizes: list[int]) -> None:
    data = np.zeros(sum(sizes), np.float32)
    values = [torch.empty(size, device="meta") for size in sizes]
    chunks = list(chunks_of(data, values))
    assert [floats.size for floats, _ in chunks[:-1]] == [CHUNK] * max(0, len(chunks) - 1)
    assert sum(floats.size for floats, _ in chunks) == data.size
    for floats, pieces in chunks:
        ends = [first + piece.numel() for piece, first in pieces]
        assert [first for _, first in pieces] == [0, *ends[:-1]]
        assert ends[-1] == floats.size


def test_a_chunk_is_whole_floats() -> None:
    assert CHUNK * BYTES_PER_ELEMENT == CHUNK_BYTES
