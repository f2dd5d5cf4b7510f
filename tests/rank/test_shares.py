"""Range reads over another world's snapshots, here and over a connection."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agent.peers import RANGE_BYTES, PeerCopies
from orchestrator.checkpoint.layout import Extent
from orchestrator.checkpoint.slots import (
    PAGE_BYTES,
    PlacedExtent,
    Share,
    Slot,
    SlotShape,
    SnapshotDamagedError,
    create_slot,
)
from orchestrator.errors import CheckpointError
from orchestrator.rank.shares import SharesReader, SlotElsewhere, SlotHere, Source, likely_first

HOST, SECRET, STEP = "127.0.0.1", "s" * 64, 7
SIZES = {"a": 1000, "b": 10, "c": 333}


def value(name: str, kind: str) -> np.ndarray:
    """The whole tensor, float32."""
    return np.random.default_rng([len(kind), ord(name)]).random(SIZES[name], np.float32)


def cut(world_size: int, rank: int) -> list[Extent]:
    """ZeRO's way: the tensors one after the other, in as many equal parts as there are ranks."""
    total = sum(SIZES.values())
    size = -(-total // world_size)
    low, high, offset, extents = rank * size, (rank + 1) * size, 0, []
    for name, count in SIZES.items():
        start, stop = max(low, offset), min(high, offset + count)
        if start < stop:
            extents += [Extent(name, kind, (count,), start - offset, stop - start) for kind in ("master", "exp_avg")]
        offset += count
    return extents


def sealed_slot(world_size: int, rank: int) -> int:
    placed, first = [], 0
    for extent in cut(world_size, rank):
        placed.append(PlacedExtent(extent, first))
        first += extent.count + 3
    shape = SlotShape(tuple(placed), first)
    slot = Slot(create_slot("test", shape.slot_bytes))
    slot.format(shape)
    data = slot.begin(STEP, 1, {"rank": rank})
    for one in placed:
        extent = one.extent
        whole = value(extent.name, extent.kind)
        data[one.first : one.first + extent.count] = whole[extent.start : extent.start + extent.count]
    slot.seal()
    return slot.descriptor


class Node:
    """Holds the snapshots of whole worlds and gives them to who asks."""

    def __init__(self) -> None:
        self.held: dict[Share, int] = {}
        self.server = PeerCopies(HOST, self._find)
        self.server.trust(SECRET)

    def _find(self, share: Share, step: int) -> int | None:
        return os.dup(self.held[share]) if share in self.held and step == STEP else None

    def sources(self, world_size: int, *, is_here: bool) -> list[Source]:
        shares = [Share(world_size, rank) for rank in range(world_size)]
        self.held |= {share: sealed_slot(*share) for share in shares}
        if is_here:
            return [SlotHere(os.dup(self.held[share])) for share in shares]
        return [SlotElsewhere((HOST, self.server.port), SECRET, share, STEP) for share in shares]

    def close(self) -> None:
        self.server.close()
        for descriptor in self.held.values():
            os.close(descriptor)


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.close()


@pytest.mark.parametrize("is_here", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_any_range_is_found_in_whatever_shares_hold_it(node: Node, world_size: int, is_here: bool) -> None:
    rng = np.random.default_rng(world_size)
    with SharesReader(node.sources(world_size, is_here=is_here)) as reader:
        for name, size in SIZES.items():
            for kind in ("master", "exp_avg"):
                whole = value(name, kind)
                np.testing.assert_array_equal(reader.read(name, kind, 0, size), whole)
                for _ in range(20):
                    start, stop = sorted(rng.integers(0, size + 1, 2).tolist())
                    np.testing.assert_array_equal(reader.read(name, kind, start, stop - start), whole[start:stop])
        assert reader.small() == {"rank": 0}


def test_nothing_is_opened_before_it_is_needed(node: Node) -> None:
    opened: list[int] = []

    class Counting:
        def __init__(self, source: Source, rank: int) -> None:
            self._source, self._rank = source, rank
            self.small, self.read_into, self.close = source.small, source.read_into, source.close

        def extents(self) -> tuple[PlacedExtent, ...]:
            opened.append(self._rank)
            return self._source.extents()

    with SharesReader(
        [Counting(source, rank) for rank, source in enumerate(node.sources(5, is_here=False))]
    ) as reader:
        reader.read("a", "master", 0, 300)
        assert opened == [0, 1]


def test_large_ranges_come_in_parts() -> None:
    count = RANGE_BYTES // 4 * 2 + 5
    shape = SlotShape((PlacedExtent(Extent("w", "master", (count,), 0, count), 0),), count)
    slot = Slot(create_slot("test", shape.slot_bytes))
    slot.format(shape)
    slot.begin(STEP, 1, {})[:] = np.arange(count, dtype=np.float32)
    slot.seal()
    server = PeerCopies(HOST, lambda share, step: os.dup(slot.descriptor))
    server.trust(SECRET)
    try:
        with SharesReader([SlotElsewhere((HOST, server.port), SECRET, Share(1, 0), STEP)]) as reader:
            np.testing.assert_array_equal(
                reader.read("w", "master", 1, count - 1), np.arange(1, count, dtype=np.float32)
            )
    finally:
        server.close()
        os.close(slot.descriptor)


@pytest.mark.parametrize("is_here", [True, False])
def test_what_is_damaged_is_not_read(node: Node, is_here: bool) -> None:
    sources = node.sources(1, is_here=is_here)
    Slot(node.held[Share(1, 0)]).data()[5] += 1
    with SharesReader(sources) as reader, pytest.raises(SnapshotDamagedError, match="checksum"):
        reader.read("a", "master", 0, 4)


@pytest.mark.parametrize("is_here", [True, False])
@pytest.mark.parametrize("place", ["header", "index", "small", "data"])
def test_nothing_is_read_before_the_checksum_agrees(node: Node, is_here: bool, place: str) -> None:
    """Also where the rank wants nothing of the damaged slot but what is the same for all."""
    sources = node.sources(2, is_here=is_here)
    descriptor = node.held[Share(2, 0)]
    header = Slot(descriptor).header()
    small = PAGE_BYTES + header.index_bytes
    position = {"header": 16, "index": PAGE_BYTES, "small": small + 2, "data": os.fstat(descriptor).st_size - 1}[
        place
    ]
    (byte,) = os.pread(descriptor, 1, position)
    os.pwrite(descriptor, bytes([byte ^ 1]), position)
    with SharesReader(sources) as reader, pytest.raises(SnapshotDamagedError, match="checksum"):
        reader.small()


def test_a_range_that_nobody_holds_is_named(node: Node) -> None:
    sources = node.sources(3, is_here=True)
    sources.pop(1).close()
    with (
        SharesReader(sources) as reader,
        pytest.raises(CheckpointError, match="no snapshot holds element 448 of exp"),
    ):
        reader.read("a", "exp_avg", 0, 1000)


@pytest.mark.parametrize(("secret", "step"), [("x" * 64, STEP), (SECRET, STEP + 1)])
def test_a_stranger_and_a_step_that_is_not_there_get_nothing(node: Node, secret: str, step: int) -> None:
    node.held[Share(1, 0)] = sealed_slot(1, 0)
    source = SlotElsewhere((HOST, node.server.port), secret, Share(1, 0), step)
    with SharesReader([source]) as reader, pytest.raises(CheckpointError):
        reader.read("a", "master", 0, 4)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_the_likely_ranks_hold_what_is_wanted(former: int, world_size: int, data: st.DataObject) -> None:
    """No more of them are asked than overlap, and one to each side."""
    rank = data.draw(st.integers(0, world_size - 1))
    order = likely_first(range(former), world_size, rank, former)
    assert sorted(order) == list(range(former))
    low, high = rank / world_size, (rank + 1) / world_size
    overlapping = {r for r in range(former) if r / former < high and (r + 1) / former > low}
    needed = max(order.index(r) for r in overlapping) + 1
    assert needed <= len(overlapping) + 2
