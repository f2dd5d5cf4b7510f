"""Copies in a peer's memory, over real connections on this host."""

import contextlib
import hmac
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.agent.peers import CHUNK_BYTES, COPIES_OF_RANK, PeerCopies, fetch_copy, store_copy
from orchestrator.agent.wire import CHALLENGE_BYTES
from orchestrator.checkpoint.layout import Extent
from orchestrator.checkpoint.slots import PlacedExtent, Share, Slot, SlotShape, create_slot
from orchestrator.errors import CheckpointError

HOST = "127.0.0.1"
SECRET = "a" * 64
NUM_FLOATS = CHUNK_BYTES // 2
"""Two chunks, and a header."""
MORE_THAN_SOCKETS_BUFFER = 2 * sum(
    int(Path(f"/proc/sys/net/ipv4/tcp_{kind}mem").read_text().split()[2]) for kind in "rw"
)
"""Of one connection, both ends together, by the kernel's own limits."""


def shape_of(num_floats: int) -> SlotShape:
    return SlotShape((PlacedExtent(Extent("w", "master", (num_floats,), 0, num_floats), 0),), num_floats)


@pytest.fixture
def sealed() -> Iterator[Callable[..., Slot]]:
    """Makes slots sealed at a step."""
    descriptors = []

    def make(step: int, num_floats: int = NUM_FLOATS, attempt: int = 1) -> Slot:
        shape = shape_of(num_floats)
        slot = Slot(create_slot("test", shape.slot_bytes))
        descriptors.append(slot.descriptor)
        slot.format(shape)
        slot.begin(step, attempt, {"step": step})[:] = np.random.default_rng(step).random(num_floats, np.float32)
        slot.seal()
        return slot

    yield make
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.fixture
def copies() -> Iterator[PeerCopies]:
    copies = PeerCopies(HOST)
    copies.trust(SECRET)
    yield copies
    copies.close()


def store(copies: PeerCopies, slot: Slot, rank: int = 3, secret: str = SECRET) -> None:
    store_copy((HOST, copies.port), secret, slot.descriptor, Share(9, rank))


def fetch(copies: PeerCopies, step: int, rank: int = 3, secret: str = SECRET) -> bytes:
    descriptor = fetch_copy((HOST, copies.port), secret, Share(9, rank), step)
    try:
        return content(descriptor)
    finally:
        os.close(descriptor)


def steps(copies: PeerCopies) -> dict[int, list[int]]:
    """rank -> steps, of the only world."""
    return {share.rank: steps for share, steps in copies.sealed_steps().items() if share.world_size == 9}


def content(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, size, 0)
    assert len(data) == size
    return data


def test_two_nodes_hold_copies_for_each_other(copies, sealed):
    other = PeerCopies(HOST)
    other.trust(SECRET)
    try:
        first, second = sealed(4), sealed(5)
        store(copies, first, rank=0)
        store(other, second, rank=1)
        assert (steps(copies), steps(other)) == ({0: [4]}, {1: [5]})
        assert fetch(copies, 4, rank=0) == content(first.descriptor)
        assert fetch(other, 5, rank=1) == content(second.descriptor)
    finally:
        other.close()


def test_a_fetched_slot_is_a_sealed_slot_of_its_own(copies, sealed):
    store(copies, sealed(4))
    descriptor = fetch_copy((HOST, copies.port), SECRET, Share(9, 3), 4)
    try:
        copies.keep_only(None, 9, 2)
        slot = Slot(descriptor)
        assert slot.is_sound()
        assert slot.small() == {"step": 4}
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("secret", ["b" * 64, "", SECRET[:-1]])
def test_a_wrong_secret_stores_and_fetches_nothing(copies, sealed, secret):
    store(copies, sealed(4))
    with pytest.raises(CheckpointError):
        store(copies, sealed(5), secret=secret)
    with pytest.raises(CheckpointError):
        fetch(copies, 4, secret=secret)
    assert steps(copies) == {3: [4]}
    store(copies, sealed(6))  # the right one still may
    assert fetch(copies, 6)


def test_without_a_secret_nobody_is_trusted(sealed):
    copies = PeerCopies(HOST)
    try:
        for secret in ("", SECRET):
            with pytest.raises(CheckpointError):
                store(copies, sealed(4), secret=secret)
        assert steps(copies) == {}
    finally:
        copies.close()


def test_a_wrong_proof_is_hung_up_on_before_any_request(copies):
    with socket.create_connection((HOST, copies.port)) as connection:
        assert len(connection.recv(CHALLENGE_BYTES, socket.MSG_WAITALL)) == CHALLENGE_BYTES
        connection.sendall(bytes(CHALLENGE_BYTES))
        assert connection.recv(1) == b""


def test_an_old_proof_is_worth_nothing(copies):
    """Each connection has a challenge of its own."""
    challenges = set()
    for _ in range(4):
        with socket.create_connection((HOST, copies.port)) as connection:
            challenges.add(connection.recv(CHALLENGE_BYTES, socket.MSG_WAITALL))
    assert len(challenges) == 4


@contextlib.contextmanager
def standing_still(copies: PeerCopies, slot: Slot, rank: int = 3) -> Iterator[socket.socket]:
    """A transfer of which half has come, and no more comes: its sender is behind a partition."""
    whole, header = content(slot.descriptor), slot.header()
    what = {"share": [9, rank], "step": header.step, "attempt": header.attempt, "slot_bytes": len(whole)}
    request = json.dumps({"op": "store", **what}).encode()
    with socket.create_connection((HOST, copies.port)) as connection:
        challenge = connection.recv(CHALLENGE_BYTES, socket.MSG_WAITALL)
        connection.sendall(hmac.digest(SECRET.encode(), challenge, "sha256"))
        connection.sendall(struct.pack("<I", len(request)) + request + whole[: len(whole) // 2])
        while Share(9, rank) not in copies._incoming:
            pass
        yield connection


def is_hung_up_on(connection: socket.socket) -> bool:
    """Waits for whatever comes."""
    try:
        return connection.recv(4096) == b""
    except ConnectionResetError:
        return True


def send_part(copies: PeerCopies, slot: Slot, step: int, num_bytes: int) -> bytes:
    """Begin to store a slot, as `store_copy` does, and go away after `num_bytes`; returns the answer."""
    whole = content(slot.descriptor)
    what = {"share": [9, 3], "step": step, "attempt": 1, "slot_bytes": len(whole)}
    request = json.dumps({"op": "store", **what}).encode()
    with socket.create_connection((HOST, copies.port)) as connection:
        challenge = connection.recv(CHALLENGE_BYTES, socket.MSG_WAITALL)
        connection.sendall(hmac.digest(SECRET.encode(), challenge, "sha256"))
        connection.sendall(struct.pack("<I", len(request)) + request + whole[:num_bytes])
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(4096)  # empty once the server has hung up


@pytest.mark.parametrize("cut", [0, 10, 4096, CHUNK_BYTES + 5, -1])
def test_a_transfer_cut_in_the_middle_leaves_no_sealed_copy(copies, sealed, cut):
    store(copies, sealed(4))
    slot = sealed(5)
    num_bytes = cut if cut >= 0 else len(content(slot.descriptor)) - 1
    assert send_part(copies, slot, 5, num_bytes) == b""
    assert steps(copies) == {3: [4]}
    assert fetch(copies, 4)
    store(copies, slot)
    assert steps(copies) == {3: [4, 5]}


def test_bytes_that_are_not_what_was_sealed_are_refused(copies, sealed):
    store(copies, sealed(4))
    damaged = sealed(5)
    damaged.data()[7] += 1
    with pytest.raises(CheckpointError, match="checksum"):
        store(copies, damaged)
    assert steps(copies) == {3: [4]}


def test_a_damaged_copy_is_not_handed_out_as_sound(copies, sealed):
    store(copies, sealed(4))
    (descriptor,) = copies._copies[Share(9, 3)]
    Slot(descriptor).data()[7] += 1
    with pytest.raises(CheckpointError, match="checksum"):
        fetch(copies, 4)


def test_another_step_than_announced_is_refused(copies, sealed):
    slot = sealed(5)
    assert b"does not match" in send_part(copies, slot, 6, len(content(slot.descriptor)))
    assert steps(copies) == {3: []}


def test_what_is_not_sealed_is_not_sent(copies, sealed):
    slot = sealed(4)
    slot.begin(5, 1, {})
    with pytest.raises(CheckpointError, match="not sealed"):
        store(copies, slot)
    assert steps(copies) == {}


def test_the_newest_copies_of_each_rank_are_kept(copies, sealed):
    for step in (4, 5, 6, 7):
        store(copies, sealed(step), rank=1)
    store(copies, sealed(2), rank=2)
    found = steps(copies)
    assert sorted(found[1]) == [6, 7]
    assert len(found[1]) == COPIES_OF_RANK
    assert found[2] == [2]


def test_slots_of_another_size_take_the_place_of_the_old(copies, sealed):
    store(copies, sealed(4))
    store(copies, sealed(5))
    smaller = sealed(6, NUM_FLOATS // 2)
    store(copies, smaller)
    assert steps(copies) == {3: [6]}
    assert fetch(copies, 6) == content(smaller.descriptor)


def test_keep_only(copies, sealed):
    store(copies, sealed(4))
    store(copies, sealed(5))
    store(copies, sealed(5), rank=8)
    copies.keep_only(5, 9, 1)
    assert steps(copies) == {3: [4, 5], 8: [5]}
    copies.keep_only(5, 9, 1, is_resized=True)
    assert steps(copies) == {3: [5], 8: [5]}
    copies.keep_only(4, 9, 1)
    assert steps(copies) == {3: [], 8: []}
    store(copies, sealed(5))
    copies.keep_only(None, 9, 2)
    assert steps(copies) == {3: [], 8: []}


@pytest.mark.parametrize(("rank", "step"), [(3, 5), (4, 4)])
def test_a_copy_that_is_not_there_is_named(copies, sealed, rank, step):
    store(copies, sealed(4))
    with pytest.raises(CheckpointError, match=f"no copy of rank {rank} at step {step}"):
        fetch(copies, step, rank=rank)


def test_a_peer_that_is_gone_is_named(sealed):
    copies = PeerCopies(HOST)
    copies.close()
    with pytest.raises(CheckpointError, match=f"{HOST}:{copies.port} can't be reached"):
        store(copies, sealed(4))
    assert steps(copies) == {}


@pytest.mark.parametrize("frame", [b"\xff\xff\xff\xff", struct.pack("<I", 2) + b"[]", struct.pack("<I", 1) + b"{"])
def test_nonsense_from_who_knows_the_secret_ends_that_connection_only(copies, sealed, frame):
    with socket.create_connection((HOST, copies.port)) as connection:
        challenge = connection.recv(CHALLENGE_BYTES, socket.MSG_WAITALL)
        connection.sendall(hmac.digest(SECRET.encode(), challenge, "sha256") + frame)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    store(copies, sealed(4))
    assert steps(copies) == {3: [4]}


def test_of_another_world_only_the_step_that_is_restored_stays(copies, sealed):
    for step in (4, 5):
        store(copies, sealed(step))
        store(copies, sealed(step), rank=7)
    copies.keep_only(4, 2, 1)
    store_copy((HOST, copies.port), SECRET, sealed(6).descriptor, Share(2, 1))
    assert copies.sealed_steps() == {Share(9, 3): [4], Share(9, 7): [4], Share(2, 1): [6]}
    assert fetch(copies, 4)
    copies.forget_other_worlds(2)
    assert copies.sealed_steps() == {Share(2, 1): [6]}


def test_a_slot_that_no_socket_buffer_holds_is_stored_and_fetched(copies, sealed):
    """The sender is faster than who receives it, and has to wait."""
    slot = sealed(4, MORE_THAN_SOCKETS_BUFFER // 4)
    store(copies, slot)
    assert fetch(copies, 4) == content(slot.descriptor)


def test_a_transfer_that_stands_still_holds_up_no_other(copies, sealed):
    store(copies, sealed(4))
    with standing_still(copies, sealed(5)) as connection:
        store(copies, sealed(5), rank=8)
        assert steps(copies) == {3: [4], 8: [5]}
        store(copies, sealed(5))  # its sender tries again
        assert is_hung_up_on(connection)
    assert steps(copies) == {3: [4, 5], 8: [5]}


def test_when_an_attempt_begins_what_the_one_before_still_sends_is_hung_up_on(copies, sealed):
    store(copies, sealed(4))
    with standing_still(copies, sealed(5)) as connection:
        copies.keep_only(4, 9, 2)
        assert is_hung_up_on(connection)
    assert steps(copies) == {3: [4]}


def test_what_an_earlier_attempt_sends_late_is_refused(copies, sealed):
    """Its sender has not heard yet that the attempt is over: its steps may not be the run's any more."""
    store(copies, sealed(4))
    copies.keep_only(4, 9, 2)
    with pytest.raises(CheckpointError):  # it hears why, or is hung up on while it sends
        store(copies, sealed(9, attempt=1))
    assert steps(copies) == {3: [4]}
    store(copies, sealed(5, attempt=2))
    store(copies, sealed(6, attempt=3))  # of an attempt that this node is still to be told of
    assert sorted(steps(copies)[3]) == [5, 6]


def test_a_copy_that_is_sent_again_leaves_the_other_one(copies, sealed):
    """The older step may still be the newest that all peers hold."""
    store(copies, sealed(4))
    store(copies, sealed(5))
    store(copies, sealed(5))
    assert steps(copies) == {3: [4, 5]}
