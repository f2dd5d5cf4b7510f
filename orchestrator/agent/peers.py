"""Copies of snapshots in another node's memory: agents send sealed slots to each other over TCP.

A lost node's slots come from its peer, and where the world size has changed, ranks read what they need of other
nodes' slots. Every connection is authenticated by a secret that the driver made and handed to the agents (HMAC over a
challenge); what travels is the cluster's own traffic, like that of NCCL and gloo.

One request a connection, as a JSON frame, about the `share` [world size, rank] at a step:
    {"op": "store", "share", "step", "attempt", "slot_bytes"} + bytes of the slot   -> {"problem": str | None}
    {"op": "fetch", "share", "step"}     -> {"problem", "slot_bytes"} + bytes of the slot
    {"op": "read", "share", "step"}      -> {"problem"}; from then on, as often as wanted:
        {"is_sound": None}               -> {"is_sound": bool}
        {"offset", "count"}              -> bytes of the slot + their xxh3_64
and, about a checkpoint on the node's own disk (rangereads.py):
    {"op": "file", "step", "file"}       -> {"problem"}; from then on ranges of the file
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from orchestrator.agent.wire import (
    TRANSFER_TIMEOUT_S,
    Around,
    asked,
    hang_up,
    is_trusted,
    receive_exactly,
    receive_frame,
    send_frame,
)
from orchestrator.checkpoint.slots import Share, Slot, SlotState, create_slot, is_kept, sealed_step
from orchestrator.control.specs import COPIES_OF_RANK
from orchestrator.errors import CheckpointError
from orchestrator.rank.rangereads import serve_ranges

CHUNK_BYTES = 1 << 20
RANGE_BYTES = 4 << 20
"""Most that is asked for at once where a slot is read by ranges."""
DIGEST_BYTES = 8
ACCEPT_RETRY_S = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class _Incoming:
    """A copy that is being received."""

    connection: socket.socket
    is_over: threading.Event = field(default_factory=threading.Event)


class PeerCopies:
    """The copies that this node holds for others, and the server that takes and gives them."""

    def __init__(self, address: str, find_own: Callable[[Share, int], int | None] = lambda share, step: None) -> None:
        """`find_own`: a descriptor, for the caller to close, of the node's own slot of a share at a step."""
        self._secret = b""
        self._files: Path | None = None
        """Folder of checkpoints that others may read."""
        self._find_own = find_own
        self._copies: dict[Share, list[int]] = {}
        """Descriptors of each share's copies."""
        self._attempt = 0
        """Copies of earlier ones are not taken."""
        self._incoming: dict[Share, _Incoming] = {}
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self._server = socket.create_server((address, 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._serve, name="peer-copies", daemon=True).start()

    def trust(self, secret: str) -> None:
        """From here on whoever knows `secret` may store and fetch; nobody before."""
        self._secret = secret.encode()

    def serve_files(self, folder: Path) -> None:
        self._files = folder

    def sealed_steps(self) -> dict[Share, list[int]]:
        """Steps of which this node holds a whole copy."""
        with self._lock:
            return {
                share: [step for descriptor in descriptors if (step := sealed_step(descriptor)) is not None]
                for share, descriptors in self._copies.items()
            }

    def find(self, share: Share, step: int) -> int | None:
        """Descriptor, for the caller to close, of the copy sealed at `step`; None where there is none."""
        with self._lock:
            held = [d for d in self._copies.get(share, []) if sealed_step(d) == step]
            return os.dup(held[0]) if held else None

    def keep_only(self, step: int | None, world_size: int, attempt: int, *, is_resized: bool = False) -> None:
        """Before `attempt`, of so many ranks, which starts from `step`. Later copies of its world are emptied (where
        `is_resized` earlier ones, too), those of other worlds freed, and what earlier attempts still send is hung up
        on."""
        with self._lock:
            self._attempt = attempt
            for incoming in self._incoming.values():
                hang_up(incoming.connection)
            for share, descriptors in self._copies.items():
                for descriptor in list(descriptors):
                    sealed = sealed_step(descriptor)
                    if share.world_size != world_size and sealed != step:
                        os.close(descriptor)
                        descriptors.remove(descriptor)
                    elif sealed is not None and not is_kept(sealed, step, is_resized=is_resized):
                        Slot(descriptor).discard()

    def forget_other_worlds(self, world_size: int) -> None:
        """A world of `world_size` has copies of its own by now: free those of others."""
        with self._lock:
            for share in [share for share in self._copies if share.world_size != world_size]:
                for descriptor in self._copies.pop(share):
                    os.close(descriptor)

    def num_bytes(self) -> int:
        with self._lock:
            return sum(os.fstat(descriptor).st_size for held in self._copies.values() for descriptor in held)

    def close(self) -> None:
        self._is_closing.set()
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
            except OSError:  # closed, or no descriptor is free just now
                if self._is_closing.wait(ACCEPT_RETRY_S):
                    return
                continue
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError, KeyError, TypeError, EOFError):
            connection.settimeout(TRANSFER_TIMEOUT_S)
            if not is_trusted(connection, self._secret):
                return
            request = receive_frame(connection)
            if request["op"] == "file":
                if self._files is not None:
                    serve_ranges(connection, self._files, request["step"], request["file"])
                return
            share = Share(*request["share"])
            if request["op"] == "store":
                self._take(connection, share, request)
            elif request["op"] in ("fetch", "read"):
                self._give(connection, share, request)

    def _take(self, connection: socket.socket, share: Share, request: dict[str, Any]) -> None:
        """One copy of a share at a time: the sender of a second one has given up the first."""
        with self._lock:
            before, incoming = self._incoming.get(share), _Incoming(connection)
            is_late = request["attempt"] < self._attempt
            if not is_late:
                self._incoming[share] = incoming
        try:
            if before is not None and not is_late:
                hang_up(before.connection)
                before.is_over.wait()
            problem = self._problem_with(connection, share, request)
        finally:
            incoming.is_over.set()
            with self._lock:
                if self._incoming.get(share) is incoming:
                    del self._incoming[share]
        send_frame(connection, {"problem": problem})

    def _problem_with(self, connection: socket.socket, share: Share, request: dict[str, Any]) -> str | None:
        """Of the copy that it has taken, or has not."""
        try:
            descriptor = self._free_copy(share, request)
        except CheckpointError as error:
            return str(error)
        try:
            receive_slot(connection, descriptor, request["slot_bytes"])
            slot, problem = Slot(descriptor), None
            header = slot.header()
            if (header.step, header.attempt) != (request["step"], request["attempt"]) or not slot.is_sound():
                problem = f"the copy of step {request['step']} does not match its checksum"
            with self._lock:
                problem = problem or self._lateness(request)
                if problem is not None:
                    slot.discard()
        except CheckpointError as error:
            return str(error)
        finally:
            os.close(descriptor)
        return problem

    def _lateness(self, request: dict[str, Any]) -> str | None:
        if request["attempt"] >= self._attempt:
            return None
        return f"it is of attempt {request['attempt']}, and attempt {self._attempt} has begun"

    def _free_copy(self, share: Share, request: dict[str, Any]) -> int:
        """Descriptor, for the caller to close, of the older of a rank's copies, or of a new one, or of that of the
        same step, which is sent again; both anew where their size has changed. Raises CheckpointError."""
        step, slot_bytes = request["step"], request["slot_bytes"]
        with self._lock:
            if (problem := self._lateness(request)) is not None:
                raise CheckpointError(problem)
            descriptors = self._copies.setdefault(share, [])
            if descriptors and os.fstat(descriptors[0]).st_size != slot_bytes:
                for descriptor in descriptors:
                    os.close(descriptor)
                descriptors.clear()
            sealed = {sealed_step(descriptor) or -1: descriptor for descriptor in descriptors}
            if step not in sealed and len(descriptors) < COPIES_OF_RANK:
                descriptors.append(create_slot(f"copy-of-rank-{share.rank}", slot_bytes))
                return os.dup(descriptors[-1])
            return os.dup(sealed[step if step in sealed else min(sealed)])

    def _give(self, connection: socket.socket, share: Share, request: dict[str, Any]) -> None:
        """A whole slot, or what is asked for of it: the node's own, else its copy."""
        step = request["step"]
        descriptor = self._find_own(share, step)
        if descriptor is None:
            descriptor = self.find(share, step)
        if descriptor is None:
            send_frame(connection, {"problem": f"no copy of rank {share.rank} at step {step}"})
            return
        try:
            slot_bytes = os.fstat(descriptor).st_size
            send_frame(connection, {"problem": None, "slot_bytes": slot_bytes})
            if request["op"] == "fetch":
                send_slot(connection, descriptor, slot_bytes)
            else:
                _answer_reads(connection, descriptor)
        finally:
            os.close(descriptor)


def _answer_reads(connection: socket.socket, descriptor: int) -> None:
    """Until the reader hangs up: EOFError."""
    while True:
        wanted = receive_frame(connection)
        if "is_sound" in wanted:
            send_frame(connection, {"is_sound": Slot(descriptor).is_sound()})
            continue
        if not 0 <= wanted["count"] <= RANGE_BYTES:
            raise ValueError(f"a range of {wanted['count']} bytes")
        data = os.pread(descriptor, wanted["count"], wanted["offset"])
        connection.sendall(data)
        connection.sendall(xxhash.xxh3_64_digest(data))


def store_copy(
    peer: tuple[str, int],
    secret: str,
    descriptor: int,
    share: Share,
    around: Around = contextlib.nullcontext,
) -> None:
    """Send a sealed slot to a peer; returns once it holds a sound copy. `around` as of `asked`. Raises
    CheckpointError."""
    header = Slot(descriptor).header()
    if header.state is not SlotState.sealed:
        raise CheckpointError(f"the slot of rank {share.rank} is not sealed")
    slot_bytes = os.fstat(descriptor).st_size
    what = {"share": share, "step": header.step, "attempt": header.attempt, "slot_bytes": slot_bytes}
    with asked(peer, secret, {"op": "store", **what}, around) as connection:
        send_slot(connection, descriptor, slot_bytes)
        problem = receive_frame(connection)["problem"]
    if problem is not None:
        raise CheckpointError(f"peer {peer[0]} did not take the copy of rank {share.rank}: {problem}")


def fetch_copy(peer: tuple[str, int], secret: str, share: Share, step: int) -> int:
    """Descriptor of a new slot with the peer's copy of a share at `step`. Raises CheckpointError."""
    with asked(peer, secret, {"op": "fetch", "share": share, "step": step}) as connection:
        answer = receive_frame(connection)
        if answer["problem"] is not None:
            raise CheckpointError(f"peer {peer[0]}: {answer['problem']}")
        descriptor = create_slot(f"rank-{share.rank}-fetched", answer["slot_bytes"])
        try:
            receive_slot(connection, descriptor, answer["slot_bytes"])
        except (OSError, EOFError):
            os.close(descriptor)
            raise
    if not Slot(descriptor).is_sound():
        os.close(descriptor)
        raise CheckpointError(
            f"peer {peer[0]}: the copy of rank {share.rank} at step {step} does not match its checksum"
        )
    return descriptor


def send_slot(connection: socket.socket, descriptor: int, slot_bytes: int) -> None:
    """Straight from the slot's pages into the socket, as fast as the peer takes it."""
    with open(descriptor, "rb", buffering=0, closefd=False) as slot:
        # Not os.sendfile: a socket with a time limit is non-blocking, and that fails once its buffer is full.
        if connection.sendfile(slot, 0, slot_bytes) < slot_bytes:
            raise EOFError


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
