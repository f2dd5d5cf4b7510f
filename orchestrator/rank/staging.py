"""Between a rank's device and a snapshot slot: copied chunk by chunk, each hashed while it is in the cache.

On a GPU several lanes work side by side, because one core copies and hashes more slowly than the bus: each has a
stream of its own, so that training's streams go on, and a small pinned buffer. Whole slots are never pinned:
page-locking gigabytes is slow and starves the host. On a CPU training needs the cores, so one thread does it all.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import torch

from model.partition import StatePart
from orchestrator.checkpoint.layout import BYTES_PER_ELEMENT
from orchestrator.checkpoint.slots import CHUNK_BYTES, Slot, chunk_digest
from orchestrator.errors import CheckpointError

CHUNK = CHUNK_BYTES // BYTES_PER_ELEMENT
MAX_LANES = 8

Piece = tuple[torch.Tensor, int]
"""(part of a flat tensor, its first float in the chunk)."""
Chunk = tuple[np.ndarray, list[Piece]]
"""(the slot's floats, what belongs there)."""


class Staging:
    """Used by one thread at a time."""

    def __init__(self, device: torch.device, threads: int) -> None:
        """`threads`: CPU cores that this rank may use."""
        self._device = device
        self._pool: ThreadPoolExecutor | None = None
        self._lanes: SimpleQueue[Lane] = SimpleQueue()
        if device.type == "cuda":
            count = max(1, min(threads, MAX_LANES))
            self._pool = ThreadPoolExecutor(count, thread_name_prefix="staging")
            for _ in range(count):
                self._lanes.put(Lane(device))

    def save(self, slot: Slot, parts: Sequence[StatePart]) -> None:
        """Copy the parts into the slot, one after the other, and seal it. The slot has begun, and has their shape."""
        slot.seal(self._each(slot, parts, Lane.save, _save))

    def load(self, slot: Slot, parts: Sequence[StatePart]) -> None:
        """Copy the slot's data into the parts. Raises CheckpointError where it is not what was sealed; the parts
        hold anything then."""
        if not slot.is_sound(self._each(slot, parts, Lane.load, _load)):
            raise CheckpointError("it does not match its checksum")

    def _each(
        self,
        slot: Slot,
        parts: Sequence[StatePart],
        on_device: "Callable[[Lane, Chunk], bytes]",
        on_host: Callable[[Chunk], bytes],
    ) -> list[bytes]:
        chunks = chunks_of(slot.data(), [part.values for part in parts])
        if self._pool is None:
            return [on_host(chunk) for chunk in chunks]
        training = torch.cuda.current_stream(self._device)

        def run(chunk: Chunk) -> bytes:
            lane = self._lanes.get()
            try:
                lane.stream.wait_stream(training)
                return on_device(lane, chunk)
            finally:
                self._lanes.put(lane)

        return list(self._pool.map(run, chunks))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def chunks_of(data: np.ndarray, values: Sequence[torch.Tensor]) -> Iterator[Chunk]:
    """Cut the flat tensors, laid one after the other, where the chunks of a slot's data end."""
    pieces: list[Piece] = []
    filled, start = 0, 0
    for value in values:
        taken = 0
        while taken < value.numel():
            count = min(value.numel() - taken, CHUNK - filled)
            pieces.append((value[taken : taken + count], filled))
            taken, filled = taken + count, filled + count
            if filled == CHUNK:
                yield data[start : start + CHUNK], pieces
                pieces, filled, start = [], 0, start + CHUNK
    if pieces:
        yield data[start : start + filled], pieces


def _save(chunk: Chunk) -> bytes:
    floats, pieces = chunk
    target = torch.from_numpy(floats)
    for piece, first in pieces:
        target[first : first + piece.numel()].copy_(piece)
    return chunk_digest(floats)


def _load(chunk: Chunk) -> bytes:
    floats, pieces = chunk
    digest = chunk_digest(floats)
    source = torch.from_numpy(floats)
    for piece, first in pieces:
        piece.copy_(source[first : first + piece.numel()])
    return digest


class Lane:
    """One chunk at a time over the bus. Waiting for it lets other threads run and uses no core."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self._buffer = torch.empty(CHUNK, dtype=torch.float32, pin_memory=True)
        self._host = self._buffer.numpy()
        """The same memory: numpy copies on the lane's own thread, where torch would use OMP_NUM_THREADS of them."""
        self._arrived = torch.cuda.Event(blocking=True)

    def save(self, chunk: Chunk) -> bytes:
        floats, pieces = chunk
        with torch.cuda.stream(self.stream):
            for piece, first in pieces:
                self._buffer[first : first + piece.numel()].copy_(piece, non_blocking=True)
            self._arrived.record(self.stream)
        self._arrived.synchronize()
        np.copyto(floats, self._host[: floats.size])
        return chunk_digest(floats)

    def load(self, chunk: Chunk) -> bytes:
        floats, pieces = chunk
        np.copyto(self._host[: floats.size], floats)
        digest = chunk_digest(self._host[: floats.size])
        with torch.cuda.stream(self.stream):
            for piece, first in pieces:
                piece.copy_(self._buffer[first : first + piece.numel()], non_blocking=True)
            self._arrived.record(self.stream)
        self._arrived.synchronize()
        return digest
