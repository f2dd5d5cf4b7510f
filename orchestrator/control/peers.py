"""Copies of snapshots in another node's memory: agents send sealed slots to each other over TCP.

A lost node's slots come from its peer. Every connection is authenticated by a secret that the driver made and handed
to the agents (HMAC over a challenge); what travels is the cluster's own traffic, like that of NCCL and gloo.

One request a connection, as a JSON frame; then the raw bytes of a slot in one direction:
    {"op": "store", "rank", "step", "slot_bytes"} + bytes    -> {"problem": str | None}
    {"op": "fetch", "rank", "step"}                          -> {"problem", "slot_bytes"} + bytes
"""

import contextlib
import hmac
import json
import os
import secrets
import socket
import struct
import threading
from typing import Any

from orchestrator.checkpoint.slots import Slot, SlotState, create_slot, sealed_step
from orchestrator.control.specs import COPIES_OF_RANK
from orchestrator.errors import CheckpointError

CONNECT_TIMEOUT_S = 5.0
TRANSFER_TIMEOUT_S = 60.0
"""Without a byte for so long a transfer has failed."""
CHALLENGE_BYTES = 32
MAX_FRAME_BYTES = 4096
CHUNK_BYTES = 1 << 20
_LENGTH = struct.Struct("<I")


class PeerCopies:
    """The copies that this node holds for others, and the server that takes and gives them."""

    def __init__(self, address: str) -> None:
        self._secret = b""
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
            challenge = secrets.token_bytes(CHALLENGE_BYTES)
            connection.sendall(challenge)
            proof = _receive_exactly(connection, CHALLENGE_BYTES)
            if not self._secret or not hmac.compare_digest(proof, _proof(self._secret, challenge)):
                return
            request = _receive_frame(connection)
            if request["op"] == "store":
                with self._receiving:  # two for one rank at once would share a copy
                    self._take(connection, request)
            elif request["op"] == "fetch":
                self._give(connection, request)

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
        _send_frame(connection, {"problem": problem})

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
            _send_frame(connection, {"problem": f"no copy of rank {request['rank']} at step {request['step']}"})
            return
        try:
            slot_bytes = os.fstat(held[0]).st_size
            _send_frame(connection, {"problem": None, "slot_bytes": slot_bytes})
            send_slot(connection, held[0], slot_bytes)
        finally:
            os.close(held[0])


def store_copy(peer: tuple[str, int], secret: str, descriptor: int, rank: int) -> None:
    """Send a sealed slot to a peer; returns once it holds a sound copy. Raises CheckpointError."""
    header = Slot(descriptor).header()
    if header.state is not SlotState.sealed:
        raise CheckpointError(f"the slot of rank {rank} is not sealed")
    slot_bytes = os.fstat(descriptor).st_size
    with _asked(
        peer, secret, {"op": "store", "rank": rank, "step": header.step, "slot_bytes": slot_bytes}
    ) as connection:
        send_slot(connection, descriptor, slot_bytes)
        problem = _receive_frame(connection)["problem"]
    if problem is not None:
        raise CheckpointError(f"peer {peer[0]} did not take the copy of rank {rank}: {problem}")


def fetch_copy(peer: tuple[str, int], secret: str, rank: int, step: int) -> int:
    """Descriptor of a new slot with the peer's copy of a rank at `step`. Raises CheckpointError."""
    with _asked(peer, secret, {"op": "fetch", "rank": rank, "step": step}) as connection:
        answer = _receive_frame(connection)
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


@contextlib.contextmanager
def _asked(peer: tuple[str, int], secret: str, request: dict[str, Any]) -> Any:
    """A connection on which `request` was sent. Network errors become CheckpointError."""
    try:
        with socket.create_connection(peer, timeout=CONNECT_TIMEOUT_S) as connection:
            connection.settimeout(TRANSFER_TIMEOUT_S)
            connection.sendall(_proof(secret.encode(), _receive_exactly(connection, CHALLENGE_BYTES)))
            _send_frame(connection, request)
            yield connection
    except (OSError, EOFError) as error:
        raise CheckpointError(f"peer {peer[0]}:{peer[1]} can't be reached ({error or 'it closed'})") from error


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
    first = _receive_exactly(connection, Slot.HEADER_BYTES)
    buffer = bytearray(CHUNK_BYTES)
    received = len(first)
    while received < slot_bytes:
        count = connection.recv_into(buffer, min(CHUNK_BYTES, slot_bytes - received))
        if count == 0:
            raise EOFError
        os.pwrite(descriptor, memoryview(buffer)[:count], received)
        received += count
    os.pwrite(descriptor, first, 0)


def _proof(secret: bytes, challenge: bytes) -> bytes:
    return hmac.digest(secret, challenge, "sha256")


def _send_frame(connection: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def _receive_frame(connection: socket.socket) -> dict[str, Any]:
    (count,) = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size))
    if count > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {count} bytes")
    message: dict[str, Any] = json.loads(_receive_exactly(connection, count))
    return message


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
