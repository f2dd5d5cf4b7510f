"""The agent's slots: who owns, holds, empties and writes them."""

import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from orchestrator.agent.peers import PeerCopies
from orchestrator.agent.sending import Peer
from orchestrator.agent.slotkeeper import PersistJob, SlotKeeper, owned_extent
from orchestrator.checkpoint.layout import Extent, PayloadFile, step_folder
from orchestrator.checkpoint.marker import gather_payloads
from orchestrator.checkpoint.retry import Patience
from orchestrator.checkpoint.slots import PAGE_BYTES, PlacedExtent, Share, Slot, SlotShape
from orchestrator.errors import CheckpointError

SHAPE = SlotShape(
    (
        PlacedExtent(Extent("w", "master", (50, 4), 0, 200), 0),
        PlacedExtent(Extent("b", "master", (7,), 0, 7), 200),
        PlacedExtent(Extent("w", "exp_avg", (50, 4), 0, 200), 210),
    ),
    410,
)
SLOT_BYTES = SHAPE.slot_bytes
R = [Share(3, rank) for rank in range(3)]


@pytest.fixture
def keeper() -> Iterator[SlotKeeper]:
    keeper = SlotKeeper()
    yield keeper
    keeper.close()


def seal(descriptor: int, step: int, *, is_replicated: bool = False) -> np.ndarray:
    """As a rank does."""
    slot = Slot(descriptor)
    slot.format(SHAPE)
    small = {"counters": {"adam": step}, "rng_torch": "0102ff", "is_replicated": is_replicated}
    data = slot.begin(step, 1, small)
    data[:] = np.arange(data.size, dtype=np.float32) + step
    slot.seal()
    return data


def job(store: Path | str, rank: int = 0, slot: int = 0, step: int = 4, world_size: int = 3) -> PersistJob:
    return PersistJob(
        rank=rank,
        world_size=world_size,
        attempt=1,
        slot=slot,
        step=step,
        url=str(store),
        is_disk=False,
        is_last=False,
        is_encrypted=False,
        key_file=None,
        patience=Patience(0.0),
    )


class Answers:
    """What a background transfer told, once it has."""

    def __init__(self) -> None:
        self._told: list[Any] = []
        self._semaphore = threading.Semaphore(0)

    def tell(self, answer: Any) -> None:
        self._told.append(answer)
        self._semaphore.release()

    def next(self) -> Any:
        self._semaphore.acquire()
        return self._told.pop(0)


def test_slots_are_topped_up_and_made_anew_where_their_size_changes(keeper):
    assert keeper.slots_for(R[0], None, 3) == ([], [])
    first = list(keeper.slots_for(R[0], SLOT_BYTES, 2)[0])
    seal(first[0], 4)
    more, held = keeper.slots_for(R[0], SLOT_BYTES, 3)
    assert more[:2] == first
    assert (len(more), held) == (3, [])
    assert keeper.slots_for(R[0], None, 5)[0] == more
    assert keeper.sealed_steps() == {R[0]: [4]}
    anew, _ = keeper.slots_for(R[0], SLOT_BYTES * 2, 2)
    assert [os.fstat(descriptor).st_size for descriptor in anew] == [SLOT_BYTES * 2] * 2
    assert keeper.sealed_steps() == {R[0]: []}


def test_what_comes_after_the_step_that_is_kept_goes(keeper):
    """What comes before it may be wanted: it may be damaged. A world of another size has no room for that."""
    for rank, steps in ((0, (4, 5)), (1, (5, 6))):
        for descriptor, step in zip(keeper.slots_for(R[rank], SLOT_BYTES, 3)[0], steps, strict=False):
            seal(descriptor, step)
    assert keeper.sealed_steps() == {R[0]: [4, 5], R[1]: [5, 6]}
    keeper.keep_only(5, 3)
    assert keeper.sealed_steps() == {R[0]: [4, 5], R[1]: [5]}
    keeper.keep_only(5, 3, is_resized=True)
    assert keeper.sealed_steps() == {R[0]: [5], R[1]: [5]}
    assert Slot(keeper.slots_for(R[0], None, 0)[0][1]).is_sound()
    keeper.keep_only(None, 3)
    assert keeper.sealed_steps() == {R[0]: [], R[1]: []}


def test_a_held_slot_is_emptied_only_once_it_is_released(keeper):
    descriptors, _ = keeper.slots_for(R[0], SLOT_BYTES, 2)
    seal(descriptors[0], 6)
    seal(descriptors[1], 5)
    (slots, first), (_, second) = keeper._hold(R[0], 0), keeper._hold(R[0], 0)
    assert keeper.slots_for(R[0], None, 0)[1] == [0, 0]  # once for each reader
    keeper.keep_only(5, 3)
    assert keeper.sealed_steps() == {R[0]: [5]}
    assert Slot(descriptors[0]).is_sound()
    keeper._release(slots, 0, first)
    assert Slot(descriptors[0]).is_sound()  # another still reads it
    keeper._release(slots, 0, second)
    assert not Slot(descriptors[0]).is_sound()
    assert keeper.slots_for(R[0], None, 0)[1] == []
    assert keeper.sealed_steps() == {R[0]: [5]}


def test_a_held_slot_outlives_its_replacement(keeper):
    """Slots of another size, or a fetched one, take the place of those that are still read."""
    seal(keeper.slots_for(R[0], SLOT_BYTES, 1)[0][0], 4)
    slots, duplicate = keeper._hold(R[0], 0)
    keeper.slots_for(R[0], SLOT_BYTES * 2, 1)
    assert Slot(duplicate).is_sound()
    keeper._release(slots, 0, duplicate)
    assert keeper.sealed_steps() == {R[0]: []}


def test_what_a_rank_found_damaged_is_not_chosen_again(keeper):
    descriptors, _ = keeper.slots_for(R[0], SLOT_BYTES, 3)
    seal(descriptors[0], 4)
    seal(descriptors[1], 5)
    assert not keeper.reject(R[0], 6)
    assert not keeper.reject(R[1], 5)
    slots, reader = keeper._hold(R[0], 1)
    assert keeper.reject(R[0], 5)
    assert keeper.sealed_steps() == {R[0]: [4]}
    keeper._release(slots, 1, reader)
    assert keeper.sealed_steps() == {R[0]: [4]}


def test_an_adopted_slot_is_the_ranks_first(keeper):
    other = SlotKeeper()
    try:
        seal(other.slots_for(R[1], SLOT_BYTES, 1)[0][0], 9)
        seal(keeper.slots_for(R[1], SLOT_BYTES, 2)[0][0], 8)
        keeper.adopt(R[1], os.dup(other.slots_for(R[1], None, 0)[0][0]))
    finally:
        other.close()
    assert keeper.sealed_steps() == {R[1]: [9]}
    descriptors, held = keeper.slots_for(R[1], SLOT_BYTES, 3)
    assert (len(descriptors), held) == (3, [])
    assert Slot(descriptors[0]).is_sound()


def test_of_another_world_only_the_step_that_is_restored_stays(keeper):
    """Until the new world has snapshots of its own."""
    for descriptor, step in zip(keeper.slots_for(R[1], SLOT_BYTES, 3)[0], (4, 5), strict=False):
        seal(descriptor, step)
    keeper.slots_for(R[2], SLOT_BYTES, 2)
    keeper.keep_only(4, 2)
    new = Share(2, 0)
    seal(keeper.slots_for(new, SLOT_BYTES * 2, 2)[0][0], 6)
    assert keeper.sealed_steps() == {R[1]: [4], new: [6]}
    assert len(keeper.slots_for(R[1], None, 0)[0]) == 1
    found = keeper.find(R[1], 4)
    assert (keeper.find(R[1], 5), keeper.find(R[2], 4)) == (None, None)
    keeper.forget_other_worlds(2)
    assert keeper.sealed_steps() == {new: [6]}
    assert Slot(found).is_sound()  # who has found it may go on reading
    os.close(found)


def test_a_held_slot_of_another_world_may_be_released_after_it_is_gone(keeper):
    descriptors = list(keeper.slots_for(R[0], SLOT_BYTES, 2)[0])
    seal(descriptors[0], 6)
    seal(descriptors[1], 5)
    slots, reader = keeper._hold(R[0], 0)
    keeper.keep_only(5, 3)  # held: emptied later
    keeper.keep_only(5, 2)
    others = [os.dup(reader) for _ in range(4)]  # somebody else has that number by now
    keeper._release(slots, 0, reader)
    assert all(Slot(other).is_sound() for other in others)
    for other in others:
        os.close(other)
    assert keeper.sealed_steps() == {R[0]: [5]}


@pytest.mark.parametrize("world_size", [1, 3])
def test_what_every_rank_holds_is_persisted_once_and_whole(keeper, tmp_path, world_size):
    """Each rank saves its part; together the files are what the slots hold, and their checksums are right."""
    answers, files, found = Answers(), [], {}
    for rank in range(world_size):
        seal(keeper.slots_for(Share(world_size, rank), SLOT_BYTES, 1)[0][0], 4, is_replicated=True)
        keeper.persist(job(tmp_path, rank=rank, world_size=world_size), answers.tell)
        event = answers.next()
        assert (event["kind"], event["step"], event["counters"]) == ("saved", 4, {"adam": 4})
        assert keeper.slots_for(Share(world_size, rank), None, 0)[1] == []
        files.append(PayloadFile.from_dict(event["payload"]))
    for file in files:
        path = tmp_path / step_folder(4) / file.file
        assert xxhash.xxh3_128_hexdigest(path.read_bytes()) == file.xxh3_128
        for key, values in load_file(path).items():
            found[key] = values
    _, tensors = gather_payloads(files)
    for name, kind, first, count in (("w", "master", 0, 200), ("b", "master", 200, 7), ("w", "exp_avg", 210, 200)):
        starts = [piece.start for piece in tensors[name].kinds[kind]]
        whole = np.concatenate([found[f"{kind}/{name}@{start}"] for start in starts])
        np.testing.assert_array_equal(whole, np.arange(first, first + count, dtype=np.float32) + 4)


def test_a_slot_that_holds_another_step_is_not_written(keeper, tmp_path):
    answers = Answers()
    seal(keeper.slots_for(R[0], SLOT_BYTES, 1)[0][0], 5)
    keeper.persist(job(tmp_path, step=4), answers.tell)
    event = answers.next()
    assert (event["kind"], event["step"]) == ("save_failed", 4)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert keeper.slots_for(R[0], None, 0)[1] == []


def test_what_was_damaged_after_its_seal_is_not_made_a_checkpoint(keeper, tmp_path):
    """Its payload would have a checksum of its own, and verify. In the data, and in what says where it belongs."""
    answers = Answers()
    (descriptor,) = keeper.slots_for(R[0], SLOT_BYTES, 1)[0]
    for position in (os.fstat(descriptor).st_size - 3, PAGE_BYTES + 5, PAGE_BYTES):
        seal(descriptor, 4)
        (byte,) = os.pread(descriptor, 1, position)
        os.pwrite(descriptor, bytes([byte ^ 1]), position)
        keeper.persist(job(tmp_path), answers.tell)
        event = answers.next()
        assert (event["kind"], event["step"], event["fault"]) == ("save_failed", 4, None)
        assert event["message"]
        assert not list(tmp_path.rglob("*.safetensors"))
        assert keeper.slots_for(R[0], None, 0)[1] == []


def test_slots_that_can_be_had_are_kept_where_another_cannot(keeper):
    """Else each try of a node without room would take more of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    # Room for some: what other tests have left in this process may open and close a few meanwhile.
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 20, hard))
    try:
        for _ in range(3):
            with pytest.raises(CheckpointError, match=r"can't be had \(Too many open files\)"):
                keeper.slots_for(R[0], SLOT_BYTES, spare + 100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    kept = list(keeper.slots_for(R[0], None, 0)[0])
    assert kept
    assert keeper.num_bytes() == SLOT_BYTES * len(kept)
    assert keeper.slots_for(R[0], SLOT_BYTES, len(kept) + 1)[0][:-1] == kept


def test_a_slot_reaches_a_peer(keeper):
    copies, answers = PeerCopies("127.0.0.1"), Answers()
    copies.trust("secret")
    try:
        seal(keeper.slots_for(R[2], SLOT_BYTES, 1)[0][0], 4)
        keeper.replicate(R[2], 0, Peer("127.0.0.1", copies.port, "secret"), answers.tell)
        assert answers.next() is True
        assert copies.sealed_steps() == {R[2]: [4]}
        assert keeper.slots_for(R[2], None, 0)[1] == []
        assert [keeper.copied_step(share) for share in R] == [None, None, 4]
        keeper.keep_only(5, 3)
        assert keeper.copied_step(R[2]) == 4  # the peer keeps it, too
        keeper.keep_only(3, 3)
        assert keeper.copied_step(R[2]) is None
    finally:
        copies.close()


def test_a_peer_that_is_gone_is_tried_until_the_attempt_is_over(keeper):
    gone, answers = PeerCopies("127.0.0.1"), Answers()
    gone.close()
    seal(keeper.slots_for(R[2], SLOT_BYTES, 1)[0][0], 4)
    keeper.replicate(R[2], 0, Peer("127.0.0.1", gone.port, "secret"), answers.tell)
    assert keeper.slots_for(R[2], None, 0)[1] == [0]
    keeper.keep_only(4, 3)
    assert answers.next() is False
    assert keeper.slots_for(R[2], None, 0)[1] == []
    assert keeper.sealed_steps() == {R[2]: [4]}


def test_a_peer_that_says_nothing_holds_up_nothing_after_its_attempt(keeper):
    """It is stopped, or behind a partition: it takes connections, as the kernel does, and no more."""
    copies, answers = PeerCopies("127.0.0.1"), Answers()
    copies.trust("secret")
    silent = socket.create_server(("127.0.0.1", 0))
    try:
        for share in R:
            seal(keeper.slots_for(share, SLOT_BYTES, 2)[0][0], 4)
            keeper.replicate(share, 0, Peer("127.0.0.1", silent.getsockname()[1], "secret"), answers.tell)
        keeper.keep_only(4, 3)
        for share in R:
            keeper.replicate(share, 0, Peer("127.0.0.1", copies.port, "secret"), answers.tell)
        assert sorted(answers.next() for _ in range(6)) == [False] * 3 + [True] * 3
        assert copies.sealed_steps() == {share: [4] for share in R}
        assert [keeper.slots_for(share, None, 0)[1] for share in R] == [[]] * 3
    finally:
        silent.close()
        copies.close()


@settings(deadline=None)
@given(start=st.integers(0, 50), count=st.integers(0, 500), first=st.integers(0, 50), world_size=st.integers(1, 40))
def test_the_owned_parts_cover_everything_once(start, count, first, world_size):
    placed = PlacedExtent(Extent("w", "master", (1000,), start, count), first)
    parts = [owned_extent(placed, rank, world_size) for rank in range(world_size)]
    owned = [part for part in parts if part is not None]
    elements = [e for p in owned for e in range(p.extent.start, p.extent.start + p.extent.count)]
    assert elements == list(range(start, start + count))
    assert all(part.first - first == part.extent.start - start for part in owned)
    assert all(part.extent.count for part in owned)
