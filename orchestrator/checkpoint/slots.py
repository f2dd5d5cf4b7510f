"""Snapshot slots: pieces of shared memory that hold one rank's share of the training state at one step.

A slot is a memfd: nothing in /dev/shm to leak, freed by the kernel when its last holder dies. The agent owns it, so
it outlives the rank that writes it. Layout, little-endian:

    header   one page: magic, state, step, attempt, sizes, checksum of everything after the page
    index    JSON: for every extent [name, kind, shape, start, count, first float of the data]; set once
    small    JSON: what is not a partition (counters, RNG state, data state), written at each seal
    data     float32: the optimizer's flat leaves as they lie in the rank, page-aligned

The checksum is an xxh3_128 over sizes, index, small and the xxh3_128 of each CHUNK_BYTES of the data: so who copies
the data can hash it piece by piece, while it is in the cache, on several threads.

A slot is sealed last: one whose writer died in between says `writing` and is never chosen.
"""

import functools
import json
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from orchestrator.checkpoint.layout import BYTES_PER_ELEMENT, Extent
from orchestrator.errors import CheckpointError

MAGIC = b"PHXSLOT2"
PAGE_BYTES = mmap.PAGESIZE
_HEADER = struct.Struct("<8sIxxxxqqqqq16s")
SMALL_BYTES = 64 * 1024
"""Room for the small state: RNG streams take about 7 KB in base64."""


CHUNK_BYTES = 4 * 2**20
"""Small enough for a core's share of the cache, large enough that a chunk's own cost does not show."""


class SnapshotDamagedError(CheckpointError):
    """A slot is not what it was sealed as: its step can't be restored from memory."""


class Share(NamedTuple):
    """Whose state a slot holds: rank `rank` of a world of `world_size`."""

    world_size: int
    rank: int


class SlotState(IntEnum):
    empty = 0
    writing = 1
    sealed = 2


@dataclass(frozen=True, slots=True)
class Header:
    state: SlotState
    step: int
    attempt: int
    index_bytes: int
    small_bytes: int
    data_bytes: int
    checksum: bytes


@dataclass(frozen=True, slots=True)
class PlacedExtent:
    """An extent and the first float of the slot's data that holds it."""

    extent: Extent
    first: int


@dataclass(frozen=True, slots=True)
class SlotShape:
    """What a slot must have room for: the same for every step of an engine."""

    extents: tuple[PlacedExtent, ...]
    num_floats: int

    def index(self) -> bytes:
        rows = [
            [e.extent.name, e.extent.kind, e.extent.shape, e.extent.start, e.extent.count, e.first]
            for e in self.extents
        ]
        return json.dumps(rows).encode()

    @property
    def slot_bytes(self) -> int:
        return data_start(len(self.index())) + self.num_floats * BYTES_PER_ELEMENT


def create_slot(name: str, num_bytes: int) -> int:
    """Descriptor of an empty slot whose pages exist already, so that its first use costs no more than the next."""
    problem = f"{num_bytes / 2**20:,.0f} MiB of memory for a snapshot slot can't be had"
    way_out = "set snapshot.slots=2, or leave fewer workers on a node"
    descriptor = None
    try:
        available_bytes = _available_bytes()
        if not 0 < num_bytes <= available_bytes:
            raise CheckpointError(f"{problem}: {available_bytes / 2**20:,.0f} MiB are free; {way_out}")
        descriptor = os.memfd_create(f"phalanx-{name}", os.MFD_CLOEXEC)
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise CheckpointError(f"{problem} ({error.strerror}); {way_out}") from error
    return descriptor


def _available_bytes() -> int:
    """Asked first, because the kernel would rather kill a process than refuse."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * PAGE_BYTES


class Slot:
    """A slot behind a descriptor that somebody else owns. Its header is read and written without a map."""

    HEADER_BYTES = _HEADER.size

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @functools.cached_property
    def _map(self) -> mmap.mmap:
        """Made at first use; goes with the last view of `data`. Its page table entries come as who copies gets to
        them, in the background: to populate it here would hold the interpreter for all of them at once."""
        return mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size, flags=mmap.MAP_SHARED)

    def format(self, shape: SlotShape) -> None:
        """Make it an empty slot of this shape; what it held is gone."""
        index = shape.index()
        self._write_header(SlotState.empty, 0, 0, len(index), 0, shape.num_floats * BYTES_PER_ELEMENT, bytes(16))
        self._map[PAGE_BYTES : PAGE_BYTES + len(index)] = index

    def header(self) -> Header:
        """Raises CheckpointError where it is no slot, or says that it is larger than it is."""
        header = parse_header(os.pread(self.descriptor, _HEADER.size, 0))
        if data_start(header.index_bytes) + header.data_bytes > os.fstat(self.descriptor).st_size:
            raise CheckpointError("the header of a snapshot slot is damaged")
        return header

    def has_shape(self, shape: SlotShape) -> bool:
        try:
            header = self.header()
        except CheckpointError:
            return False
        index = shape.index()
        return header.index_bytes == len(index) and self._map[PAGE_BYTES : PAGE_BYTES + len(index)] == index

    def begin(self, step: int, attempt: int, small: dict[str, Any]) -> np.ndarray:
        """From here on the slot holds nothing, until `seal`. Returns its data, float32 [num_floats], to be filled."""
        header = self.header()
        text = json.dumps(small).encode()
        if len(text) > SMALL_BYTES:
            raise CheckpointError(f"the small state takes {len(text)} bytes, a slot has room for {SMALL_BYTES}")
        self._write_header(
            SlotState.writing, step, attempt, header.index_bytes, len(text), header.data_bytes, bytes(16)
        )
        start = PAGE_BYTES + header.index_bytes
        self._map[start : start + len(text)] = text
        return self.data()

    def seal(self, digests: Sequence[bytes] | None = None) -> None:
        """Checksum it; only then is it sealed. `digests` are `chunk_digest` of each chunk, where they are known."""
        h = self.header()
        checksum = self.checksum(digests)
        numbers = (h.step, h.attempt, h.index_bytes, h.small_bytes, h.data_bytes)
        self._write_header(SlotState.writing, *numbers, checksum)
        self._write_header(SlotState.sealed, *numbers, checksum)

    def discard(self) -> None:
        """Make it empty: its step is not part of the run any more."""
        h = self.header()
        self._write_header(SlotState.empty, 0, 0, h.index_bytes, 0, h.data_bytes, bytes(16))

    def clear(self) -> None:
        """Like one that was never formatted: other bytes are about to arrive."""
        os.pwrite(self.descriptor, bytes(_HEADER.size), 0)

    def checksum(self, digests: Sequence[bytes] | None = None) -> bytes:
        """Over what the header says of its content, and the content."""
        header = self.header()
        numbers = (header.step, header.attempt, header.index_bytes, header.small_bytes, header.data_bytes)
        digest = xxhash.xxh3_128(struct.pack("<5q", *numbers))
        with memoryview(self._map) as view:
            digest.update(view[PAGE_BYTES : PAGE_BYTES + header.index_bytes + header.small_bytes])
        digest.update(b"".join(self.chunk_digests() if digests is None else digests))
        return digest.digest()

    def chunk_digests(self) -> list[bytes]:
        data = self.data()
        chunk = CHUNK_BYTES // BYTES_PER_ELEMENT
        return [chunk_digest(data[first : first + chunk]) for first in range(0, data.size, chunk)]

    def is_sound(self, digests: Sequence[bytes] | None = None) -> bool:
        """Whether it is what it was sealed as; `digests` as for `seal`."""
        try:
            header = self.header()
        except CheckpointError:
            return False
        return header.state is SlotState.sealed and header.checksum == self.checksum(digests)

    def extents(self) -> tuple[PlacedExtent, ...]:
        return parse_index(os.pread(self.descriptor, self.header().index_bytes, PAGE_BYTES))

    def small(self) -> dict[str, Any]:
        """Raises CheckpointError where it can't be read; that it is what was sealed, `is_sound` says."""
        header = self.header()
        raw = os.pread(self.descriptor, header.small_bytes, PAGE_BYTES + header.index_bytes)
        try:
            small: dict[str, Any] = json.loads(raw)
        except ValueError as error:
            raise CheckpointError(f"the small state of a snapshot slot is damaged ({error})") from error
        return small

    def data(self) -> np.ndarray:
        """float32 [num_floats], a view that keeps the map alive."""
        header = self.header()
        return np.frombuffer(
            self._map,
            dtype="<f4",
            count=header.data_bytes // BYTES_PER_ELEMENT,
            offset=data_start(header.index_bytes),
        )

    def _write_header(self, state: SlotState, *fields: object) -> None:
        os.pwrite(self.descriptor, _HEADER.pack(MAGIC, state, *fields), 0)


def parse_header(raw: bytes) -> Header:
    """From a slot's first HEADER_BYTES. Raises CheckpointError where it is no slot."""
    magic, state, *numbers, checksum = _HEADER.unpack(raw)
    if magic != MAGIC or state not in tuple(SlotState):
        raise CheckpointError("a snapshot slot was never formatted, or its header is damaged")
    step, attempt, index_bytes, small_bytes, data_bytes = numbers
    if min(numbers) < 0 or small_bytes > SMALL_BYTES or data_bytes % BYTES_PER_ELEMENT:
        raise CheckpointError("the header of a snapshot slot is damaged")
    return Header(SlotState(state), step, attempt, index_bytes, small_bytes, data_bytes, checksum)


def parse_index(raw: bytes) -> tuple[PlacedExtent, ...]:
    return tuple(
        PlacedExtent(Extent(name, kind, tuple(shape), start, count), first)
        for name, kind, shape, start, count, first in json.loads(raw)
    )


def chunk_digest(chunk: np.ndarray) -> bytes:
    """Of at most CHUNK_BYTES of a slot's data; lets other threads run meanwhile."""
    digest = xxhash.xxh3_128()
    digest.update(chunk)
    return digest.digest()


class SlotReader:
    """Range reads over one rank's sealed slot, with the interface of CheckpointReader.read."""

    def __init__(self, slot: Slot) -> None:
        self._data = slot.data()
        self._placed: dict[tuple[str, str], list[PlacedExtent]] = {}
        for placed in slot.extents():
            self._placed.setdefault((placed.extent.name, placed.extent.kind), []).append(placed)

    def read(self, name: str, kind: str, start: int, count: int) -> np.ndarray:
        """float32 [count], a view. Raises CheckpointError where the slot does not hold that range whole."""
        for placed in self._placed.get((name, kind), ()):
            extent = placed.extent
            if extent.start <= start and start + count <= extent.start + extent.count:
                first = placed.first + start - extent.start
                return self._data[first : first + count]
        raise CheckpointError(f"the snapshot does not hold {kind} of {name} [{start}, {start + count})")


def sealed_step(descriptor: int) -> int | None:
    """The step that a slot was sealed at, None where it is not sealed."""
    try:
        header = Slot(descriptor).header()
    except CheckpointError:
        return None
    return header.step if header.state is SlotState.sealed else None


def is_kept(sealed: int | None, step: int | None, *, is_resized: bool) -> bool:
    """Whether a snapshot of `sealed` stays where a run goes on from that of `step` (None: from none); of another
    world's (`is_resized`) nothing else does."""
    if sealed is None or step is None:
        return False
    return sealed == step or (sealed < step and not is_resized)


def newest_common_step(steps_of_ranks: Sequence[Sequence[int]]) -> int | None:
    """The newest step that every rank has sealed, None where there is none: [[4, 5], [5, 6]] gives 5."""
    common = set(steps_of_ranks[0]) if steps_of_ranks else set()
    for steps in steps_of_ranks[1:]:
        common.intersection_update(steps)
    return max(common, default=None)


def data_start(index_bytes: int) -> int:
    """Byte of a slot at which its data begins."""
    used = PAGE_BYTES + index_bytes + SMALL_BYTES
    return -(-used // PAGE_BYTES) * PAGE_BYTES
