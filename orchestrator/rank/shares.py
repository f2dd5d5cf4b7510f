"""Reading the snapshots that the ranks of another world have left in the agents' memory.

Snapshots hold ranges of logical tensors, as checkpoints do, so a rank of any world reads the ranges that it needs:
from slots of its own node through their descriptors, from those of other nodes over their agents' connections.
"""

import contextlib
import functools
import json
import os
import socket
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xxhash

from orchestrator.agent.peers import DIGEST_BYTES, RANGE_BYTES
from orchestrator.agent.wire import asked, receive_exactly, receive_frame, send_frame
from orchestrator.checkpoint.layout import BYTES_PER_ELEMENT
from orchestrator.checkpoint.slots import (
    PAGE_BYTES,
    Header,
    PlacedExtent,
    Share,
    Slot,
    SnapshotDamagedError,
    data_start,
    parse_header,
    parse_index,
)
from orchestrator.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class WantedShares:
    """The snapshots that a resized world starts from."""

    world_size: int
    """Of the world that made them."""
    step: int
    holders: tuple[tuple[int, tuple[str, int]], ...]
    """(rank of that world, address and port of an agent that has its snapshot)."""
    secret: str


class Source(Protocol):
    """One share's snapshot. Whatever is read first raises SnapshotDamagedError where it is not what was sealed."""

    def extents(self) -> tuple[PlacedExtent, ...]: ...

    def small(self) -> dict[str, Any]: ...

    def read_into(self, first: int, out: np.ndarray) -> None:
        """Floats [first, first + len(out)) of the slot's data."""

    def close(self) -> None: ...


class SlotHere:
    """In this node's memory."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @functools.cached_property
    def _slot(self) -> Slot:
        slot = Slot(self._descriptor)
        if not slot.is_sound():
            raise SnapshotDamagedError("a snapshot of the former world does not match its checksum")
        return slot

    def extents(self) -> tuple[PlacedExtent, ...]:
        return self._slot.extents()

    def small(self) -> dict[str, Any]:
        return self._slot.small()

    def read_into(self, first: int, out: np.ndarray) -> None:
        out[:] = self._slot.data()[first : first + len(out)]

    def close(self) -> None:
        os.close(self._descriptor)


class SlotElsewhere:
    """In another node's memory. Network errors become CheckpointError."""

    def __init__(self, peer: tuple[str, int], secret: str, share: Share, step: int) -> None:
        """Connects when something is read."""
        self._peer = peer
        self._secret = secret
        self._request = {"op": "read", "share": share, "step": step}
        self._open = contextlib.ExitStack()

    @functools.cached_property
    def _connection(self) -> socket.socket:
        """Its agent has compared the whole slot with its checksum."""
        connection: socket.socket = self._open.enter_context(asked(self._peer, self._secret, self._request))
        problem = receive_frame(connection)["problem"]
        if problem is not None:
            raise CheckpointError(f"peer {self._peer[0]}: {problem}")
        send_frame(connection, {"is_sound": None})
        if not receive_frame(connection)["is_sound"]:
            raise SnapshotDamagedError(f"peer {self._peer[0]}: a snapshot does not match its checksum")
        return connection

    @functools.cached_property
    def _header(self) -> Header:
        return parse_header(self._read(0, Slot.HEADER_BYTES))

    def extents(self) -> tuple[PlacedExtent, ...]:
        return parse_index(self._read(PAGE_BYTES, self._header.index_bytes))

    def small(self) -> dict[str, Any]:
        small: dict[str, Any] = json.loads(
            self._read(PAGE_BYTES + self._header.index_bytes, self._header.small_bytes)
        )
        return small

    def read_into(self, first: int, out: np.ndarray) -> None:
        start = data_start(self._header.index_bytes) + first * BYTES_PER_ELEMENT
        out[:] = np.frombuffer(self._read(start, out.nbytes), "<f4")

    def _read(self, offset: int, count: int) -> bytes:
        parts = []
        with self._translated():
            for start in range(offset, offset + count, RANGE_BYTES):
                part_bytes = min(RANGE_BYTES, offset + count - start)
                send_frame(self._connection, {"offset": start, "count": part_bytes})
                part = receive_exactly(self._connection, part_bytes)
                if xxhash.xxh3_64_digest(part) != receive_exactly(self._connection, DIGEST_BYTES):
                    raise CheckpointError(f"peer {self._peer[0]}: bytes were changed on their way")
                parts.append(part)
        return b"".join(parts)

    @contextlib.contextmanager
    def _translated(self) -> Any:
        try:
            yield
        except (OSError, EOFError) as error:
            raise CheckpointError(f"peer {self._peer[0]} is gone ({error or 'it closed'})") from error

    def close(self) -> None:
        self._open.close()


class SharesReader:
    """Range reads over the snapshots of another world, with the interface of CheckpointReader.read.

    A source is opened when what is asked for is in none before it, so the likely ones should come first.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self._unopened = deque(sources)
        self._opened: list[Source] = []
        self._placed: dict[tuple[str, str], list[tuple[Source, PlacedExtent]]] = {}

    def __enter__(self) -> "SharesReader":
        return self

    def __exit__(self, *_: object) -> None:
        for source in (*self._opened, *self._unopened):
            source.close()

    def read(self, name: str, kind: str, start: int, count: int) -> np.ndarray:
        """float32 [count]. Raises CheckpointError where no source holds a part of that range."""
        target = np.empty(count, "<f4")
        done = 0
        while done < count:
            source, placed = self._find(name, kind, start + done)
            skipped = start + done - placed.extent.start
            part = target[done : done + placed.extent.count - skipped]
            source.read_into(placed.first + skipped, part)
            done += len(part)
        return target

    def small(self) -> dict[str, Any]:
        """Of one of the ranks: what is the same for all."""
        if not self._opened:
            self._open_next()
        return self._opened[0].small()

    def _find(self, name: str, kind: str, element: int) -> tuple[Source, PlacedExtent]:
        while True:
            for source, placed in self._placed.get((name, kind), ()):
                if placed.extent.start <= element < placed.extent.start + placed.extent.count:
                    return source, placed
            if not self._unopened:
                raise CheckpointError(f"no snapshot holds element {element} of {kind} of {name}")
            self._open_next()

    def _open_next(self) -> None:
        source = self._unopened.popleft()
        self._opened.append(source)
        for placed in source.extents():
            key = placed.extent.name, placed.extent.kind
            self._placed.setdefault(key, []).append((source, placed))


def likely_first(ranks: Iterable[int], world_size: int, rank: int, of_world_size: int) -> list[int]:
    """Ranks of a former world of `of_world_size`, those first whose part of every tensor group lies nearest to that
    of `rank` of `world_size`: partitions are cut in rank order, at every stage.

    Of 4 former ranks, rank 1 of 2 asks 2, 3, 1, 0.
    """
    middle = (rank + 0.5) / world_size

    def distance(former: int) -> float:
        return abs((former + 0.5) / of_world_size - middle)

    return sorted(ranks, key=lambda former: (distance(former), former))
