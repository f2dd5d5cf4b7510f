"""Copies of snapshots in another node's memory: agents send sealed slots to each other over TCP. Beside it they let
each other read the checkpoints on their disks (rangereads.py).

A lost node's slots come from its peer. Every connection is authenticated by a secret that the driver made and handed
to the agents (HMAC over a challenge); what travels is the cluster's own traffic, like that of NCCL and gloo.

One request a connection, as a JSON frame; then the raw bytes of a slot in one direction:
    {"op": "store", "rank", "step", "slot_bytes"} + bytes    -> {"problem": str | None}
    {"op": "fetch", "rank", "step"}                          -> {"problem", "slot_bytes"} + bytes
    {"op": "read", "step", "file"}                           -> ranges of a file, see rangereads.py
"""

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.slots import Slot, SlotState, create_slot, sealed_step
from orchestrator.control.rangereads import serve_ranges
from orchestrator.control.specs import COPIES_OF_RANK
from orchestrator.control.wire import (
    TRANSFER_TIMEOUT_S,
    asked,
    is_trusted,
    receive_exactly,
    receive_frame,
    send_frame,
)
from orchestrator.errors import CheckpointError

CHUNK_BYTES = 1 << 20


class PeerCopies:
    """The copies that this node holds for others, and the server that takes and gives them."""

    def __init__(self, address: str) -> None:
        self._secret = b""
        self._files: Path | None = None
        """Folder of checkpoints that others may read."""
        self._copies: dict[int, list[int]] = {}
        """rank -> descriptors of its copies."""
        self._lock = threading.Lock()
        self._receiving = threading.Lock()
        self._server = socket.create_server((address, 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._serve, name="peer-copies", daemon=True).start()

    def trust(self, secret: str) -> None:
        """From here on whoever knows `secret` may store and fetch; nobody before."""
        self._secret = secret.encode()

    def serve_files(self, folder: Path) -> None:
        self._files = folder

    def sealed_steps(self) -> dict[int, list[int]]:
        """rank -> steps of which this node holds a whole copy."""
        with self._lock:
            return {
                rank: [step for descriptor in descriptors if (step := sealed_step(descriptor)) is not None]
                for rank, descriptors in self._copies.items()
            }

    def keep_only(self, step: int | None) -> None:
        """Before an attempt that starts from `step`."""
        with self._lock:
            for descriptors in self._copies.values():
                for descriptor in descriptors:
                    if sealed_step(descriptor) not in (None, step):
                        Slot(descriptor).discard()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            for descriptors in self._copies.values():
                for descriptor in descriptors:
                    os.close(descriptor)
            self._copies.clear()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError, KeyError, TypeError, EOFError):
            connection.settimeout(TRANSFER_TIMEOUT_S)
            if not is_trusted(connection, self._secret):
                return
            request = receive_frame(connection)
            if request["op"] == "store":
                with self._receiving:  # two for one rank at once would share a copy
                    self._take(connection, request)
            elif request["op"] == "fetch":
                self._give(connection, request)
            elif request["op"] == "read" and self._files is not None:
                serve_ranges(connection, self._files, request["step"], request["file"])

    def _take(self, connection: socket.socket, request: dict[str, Any]) -> None:
        problem = None
        try:
            descriptor = self._free_copy(request["rank"], request["slot_bytes"])
            receive_slot(connection, descriptor, request["slot_bytes"])
            slot = Slot(descriptor)
            if slot.header().step != request["step"] or not slot.is_sound():
                slot.discard()
                problem = f"the copy of step {request['step']} does not match its checksum"
        except CheckpointError as error:
            problem = str(error)
        send_frame(connection, {"problem": problem})

    def _free_copy(self, rank: int, slot_bytes: int) -> int:
        """The older of a rank's copies, or a new one; both anew where their size has changed."""
        with self._lock:
            descriptors = self._copies.setdefault(rank, [])
            if descriptors and os.fstat(descriptors[0]).st_size != slot_bytes:
                for descriptor in descriptors:
                    os.close(descriptor)
                descriptors.clear()
            if len(descriptors) < COPIES_OF_RANK:
                descriptors.append(create_slot(f"copy-of-rank-{rank}", slot_bytes))
                return descriptors[-1]
            return min(descriptors, key=lambda descriptor: sealed_step(descriptor) or -1)

    def _give(self, connection: socket.socket, request: dict[str, Any]) -> None:
        with self._lock:
            descriptors = self._copies.get(request["rank"], [])
            held = [os.dup(d) for d in descriptors if sealed_step(d) == request["step"]][:1]
        if not held:
            send_frame(connection, {"problem": f"no copy of rank {request['rank']} at step {request['step']}"})
            return
        try:
            slot_bytes = os.fstat(held[0]).st_size
            send_frame(connection, {"problem": None, "slot_bytes": slot_bytes})
            send_slot(connection, held[0], slot_bytes)
        finally:
            os.close(held[0])


def store_copy(peer: tuple[str, int], secret: str, descriptor: int, rank: int) -> None:
    """Send a sealed slot to a peer; returns once it holds a sound copy. Raises CheckpointError."""
    header = Slot(descriptor).header()
    if header.state is not SlotState.sealed:
        raise CheckpointError(f"the slot of rank {rank} is not sealed")
    slot_bytes = os.fstat(descriptor).st_size
    with asked(
        peer, secret, {"op": "store", "rank": rank, "step": header.step, "slot_bytes": slot_bytes}
    ) as connection:
        send_slot(connection, descriptor, slot_bytes)
        problem = receive_frame(connection)["problem"]
    if problem is not None:
        raise CheckpointError(f"peer {peer[0]} did not take the copy of rank {rank}: {problem}")


def fetch_copy(peer: tuple[str, int], secret: str, rank: int, step: int) -> int:
    """Descriptor of a new slot with the peer's copy of a rank at `step`. Raises CheckpointError."""
    with asked(peer, secret, {"op": "fetch", "rank": rank, "step": step}) as connection:
        answer = receive_frame(connection)
        if answer["problem"] is not None:
            raise CheckpointError(f"peer {peer[0]}: {answer['problem']}")
        descriptor = create_slot(f"rank-{rank}-fetched", answer["slot_bytes"])
        try:
            receive_slot(connection, descriptor, answer["slot_bytes"])
        except (OSError, EOFError):
            os.close(descriptor)
            raise
    if not Slot(descriptor).is_sound():
        os.close(descriptor)
        raise CheckpointError(f"peer {peer[0]}: the copy of rank {rank} at step {step} does not match its checksum")
    return descriptor


def send_slot(connection: socket.socket, descriptor: int, slot_bytes: int) -> None:
    """Straight from the slot's pages into the socket."""
    sent = 0
    while sent < slot_bytes:
        done = os.sendfile(connection.fileno(), descriptor, sent, min(CHUNK_BYTES, slot_bytes - sent))
        if done == 0:
            raise EOFError
        sent += done


def receive_slot(connection: socket.socket, descriptor: int, slot_bytes: int) -> None:
    """The header lands last, so that a copy cut off in between is not taken for a whole one."""
    Slot(descriptor).clear()
    first = receive_exactly(connection, Slot.HEADER_BYTES)
    buffer = bytearray(CHUNK_BYTES)
    received = len(first)
    while received < slot_bytes:
        count = connection.recv_into(buffer, min(CHUNK_BYTES, slot_bytes - received))
        if count == 0:
            raise EOFError
        os.pwrite(descriptor, memoryview(buffer)[:count], received)
        received += count
    os.pwrite(descriptor, first, 0)
