"""Snapshot slots: what is sealed reads back, what is not whole is never taken for whole."""

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.checkpoint.layout import KINDS, Extent
from orchestrator.checkpoint.slots import (
    PAGE_BYTES,
    SMALL_BYTES,
    PlacedExtent,
    Slot,
    SlotReader,
    SlotShape,
    SlotState,
    create_slot,
    newest_common_step,
    sealed_step,
)
from orchestrator.errors import CheckpointError
from orchestrator.validate import MAX_SPIKE_WINDOW

SMALL = {"counters": {"adam": 3}, "rng_torch": "00ff", "report": None}


def shape_of(*counts: int, gap: int = 0) -> SlotShape:
    """Extents one after the other, `gap` floats of padding behind each."""
    extents, first = [], 0
    for index, count in enumerate(counts):
        extent = Extent(f"w{index}", KINDS[index % len(KINDS)], (count + 7,), 5, count)
        extents.append(PlacedExtent(extent, first))
        first += count + gap
    return SlotShape(tuple(extents), first)


def formatted(shape: SlotShape) -> Slot:
    slot = Slot(create_slot("test", shape.slot_bytes))
    slot.format(shape)
    return slot


def filled(slot: Slot, step: int, small: dict = SMALL) -> np.ndarray:
    data = slot.begin(step, 2, small)
    data[:] = np.random.default_rng(step).standard_normal(data.size, dtype=np.float32)
    return data


@pytest.fixture
def slot() -> Iterator[Slot]:
    """Sealed at step 7, over three extents."""
    slot = formatted(shape_of(10, 3, 2000))
    filled(slot, 7)
    slot.seal()
    yield slot
    os.close(slot.descriptor)


@settings(deadline=None, max_examples=50)
@given(
    counts=st.lists(st.integers(1, 3000), max_size=6),
    gap=st.integers(0, 5),
    step=st.integers(0, 2**40),
    attempt=st.integers(1, 2**20),
    small=st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans()), max_size=4),
)
def test_what_is_sealed_reads_back_through_another_map(counts, gap, step, attempt, small):
    shape = shape_of(*counts, gap=gap)
    slot = formatted(shape)
    try:
        assert sealed_step(slot.descriptor) is None
        data = slot.begin(step, attempt, small)
        assert data.shape == (shape.num_floats,)
        assert data.ctypes.data % 4 == 0
        values = np.random.default_rng(step).standard_normal(data.size, dtype=np.float32)
        data[:] = values
        slot.seal()
        other = Slot(slot.descriptor)
        assert other.is_sound()
        assert sealed_step(slot.descriptor) == step
        assert (other.header().step, other.header().attempt) == (step, attempt)
        assert other.small() == small
        assert other.extents() == shape.extents
        np.testing.assert_array_equal(other.data(), values)
        assert os.fstat(slot.descriptor).st_size == shape.slot_bytes
    finally:
        os.close(slot.descriptor)


def test_a_slot_whose_writer_died_is_never_chosen(slot):
    filled(slot, 8)
    other = Slot(slot.descriptor)
    assert other.header().state is SlotState.writing
    assert sealed_step(slot.descriptor) is None
    assert not other.is_sound()
    slot.seal()
    assert sealed_step(slot.descriptor) == 8


@pytest.mark.parametrize("make_unsealed", [Slot.discard, Slot.clear, lambda slot: slot.format(shape_of(4, 4))])
def test_a_slot_that_was_emptied_holds_nothing(slot, make_unsealed):
    make_unsealed(slot)
    assert sealed_step(slot.descriptor) is None


def test_a_slot_that_was_never_formatted_is_no_slot():
    descriptor = create_slot("raw", 3 * PAGE_BYTES)
    try:
        assert sealed_step(descriptor) is None
        assert not Slot(descriptor).has_shape(shape_of(3))
        with pytest.raises(CheckpointError, match="never formatted"):
            Slot(descriptor).header()
    finally:
        os.close(descriptor)


def test_any_flipped_byte_is_found(slot):
    header = slot.header()
    unused = range(12, 16)
    for position in sorted(set(range(Slot.HEADER_BYTES)) - set(unused)):
        for bit in (1, 0x10, 0x80):
            flip(slot, position, bit)
            assert not slot.is_sound(), position
            flip(slot, position, bit)
    index = range(PAGE_BYTES, PAGE_BYTES + header.index_bytes)
    small = range(index.stop, index.stop + header.small_bytes)
    data_start = slot_bytes(slot) - header.data_bytes
    data = [data_start, data_start + 41, *range(data_start + 42, slot_bytes(slot), 997), slot_bytes(slot) - 1]
    for position in [*index, *small, *data]:
        flip(slot, position)
        assert not slot.is_sound(), position
        flip(slot, position)
    assert slot.is_sound()


def slot_bytes(slot: Slot) -> int:
    return os.fstat(slot.descriptor).st_size


def flip(slot: Slot, position: int, bit: int = 0x10) -> None:
    (byte,) = os.pread(slot.descriptor, 1, position)
    os.pwrite(slot.descriptor, bytes([byte ^ bit]), position)


def test_a_damaged_small_state_is_an_error_that_says_so(slot):
    flip(slot, PAGE_BYTES + slot.header().index_bytes)
    with pytest.raises(CheckpointError, match="small state"):
        slot.small()


def test_to_look_at_a_slot_costs_no_more_where_it_is_large():
    """The training thread does, before its first snapshot."""
    shape = shape_of(8 << 20)
    descriptor = create_slot("large", shape.slot_bytes)
    try:
        gc.collect()  # the maps of earlier tests' slots count, too
        before = shared_resident_bytes()
        slot = Slot(descriptor)
        slot.format(shape)
        assert slot.has_shape(shape)
        assert shared_resident_bytes() - before < 1 << 20
        slot.begin(1, 1, SMALL)[:] = 1
        assert shared_resident_bytes() - before >= 32 << 20
    finally:
        os.close(descriptor)


def shared_resident_bytes() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssShmem:")]
    return int(line.split()[1]) * 1024


def test_a_smaller_small_state_leaves_nothing_of_the_larger(slot):
    filled(slot, 8, {"a": "x" * 3000})
    slot.seal()
    filled(slot, 9, {"b": 1})
    slot.seal()
    assert Slot(slot.descriptor).small() == {"b": 1}
    assert slot.is_sound()


def test_a_small_state_without_room_is_refused_and_the_slot_stays(slot):
    with pytest.raises(CheckpointError, match=str(SMALL_BYTES)):
        slot.begin(8, 2, {"a": "x" * SMALL_BYTES})
    assert sealed_step(slot.descriptor) == 7
    assert slot.is_sound()


def test_the_longest_window_of_losses_has_room(slot):
    """A longer one once ended the run at the step that filled it, and each restart again."""
    losses = [-1.2345678901234567e-300] * MAX_SPIKE_WINDOW
    generator = torch.get_rng_state().numpy().tobytes().hex()
    slot.begin(8, 2, {**SMALL, "rng_torch": generator, "recent_losses": losses, "report": {"x": "x" * 4096}})
    slot.seal()
    assert slot.small()["recent_losses"] == losses


def test_memory_that_cannot_be_had_says_what_to_do(few_bytes):
    had = create_slot("had", few_bytes)
    try:
        with pytest.raises(CheckpointError, match=r"snapshot\.slots=2"):
            create_slot("had", 2 * few_bytes)
        assert open_slots("had") == 1
    finally:
        os.close(had)


def open_slots(name: str) -> int:
    """Descriptors of slots of that name in this process; others come and go, as of threads that other tests left."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += f"memfd:phalanx-{name} " in str(descriptor.readlink())
    return found


def test_more_memory_than_is_free_is_not_even_asked_for():
    with pytest.raises(CheckpointError, match=r"MiB are free; set snapshot\.slots=2"):
        create_slot("huge", 2**62)


@pytest.fixture
def few_bytes() -> Iterator[int]:
    """The largest file that this process may make. (Really asking for too much would have others killed.)"""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    yield 2**20
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_reader_gives_any_range_inside_an_extent(slot):
    read, data = SlotReader(slot).read, slot.data()
    np.testing.assert_array_equal(read("w0", "master", 5, 10), data[:10])
    np.testing.assert_array_equal(read("w1", "exp_avg", 6, 2), data[11:13])
    np.testing.assert_array_equal(read("w2", "exp_avg_sq", 2004, 1), data[-1:])
    assert read("w2", "exp_avg_sq", 900, 0).size == 0


@pytest.mark.parametrize(
    ("name", "kind", "start", "count"),
    [("w0", "master", 4, 2), ("w0", "master", 14, 2), ("w0", "exp_avg", 5, 1), ("w9", "master", 5, 1)],
    ids=["before", "beyond", "another kind", "another name"],
)
def test_a_reader_refuses_what_the_slot_does_not_hold_whole(slot, name, kind, start, count):
    with pytest.raises(CheckpointError, match="does not hold"):
        SlotReader(slot).read(name, kind, start, count)


def test_a_slot_knows_its_shape(slot):
    assert slot.has_shape(shape_of(10, 3, 2000))
    assert not slot.has_shape(shape_of(10, 3, 2001))
    assert not slot.has_shape(shape_of(10, 3))
    assert not slot.has_shape(shape_of(10, 3, 2000, gap=1))


@pytest.mark.parametrize(
    ("steps_of_ranks", "newest"),
    [
        ([], None),
        ([[]], None),
        ([[3]], 3),
        ([[4, 5], [5, 6]], 5),
        ([[5, 4], [4, 5]], 5),
        ([[4, 5], []], None),
        ([[4], [5]], None),
        ([[0], [0, 1]], 0),
        ([[1, 2, 3], [3, 2], [2, 9]], 2),
    ],
)
def test_the_newest_common_step(steps_of_ranks, newest):
    assert newest_common_step(steps_of_ranks) == newest
