"""The background copy of a rank's state into slots, with plain tensors; the test is the agent."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from model.partition import Fragment, StatePart
from orchestrator.agent.channel import Channel
from orchestrator.checkpoint.slots import Slot, SlotReader, SlotState, create_slot
from orchestrator.config import CheckpointConfig
from orchestrator.rank.snapshotter import NO_STEP, Snapshotter, slot_shape
from orchestrator.rank.staging import Staging

SMALL = {"counters": {}}


def parts_of(value: float) -> list[StatePart]:
    """Two flat tensors; the first has padding between its fragments."""
    master, moment = torch.full((1000,), value), torch.full((600,), -value)

    def fragment(name: str, flat: torch.Tensor, first: int, count: int) -> Fragment:
        return Fragment(name, (count + 10,), 10, count, flat, first, 0)

    first = (fragment("a", master, 0, 300), fragment("b", master, 400, 600))
    return [StatePart("master", master, first), StatePart("exp_avg", moment, (fragment("a", moment, 0, 600),))]


@dataclass
class Rank:
    """A snapshotter, its slots, and the agent's end."""

    snapshotter: Snapshotter
    slots: list[Slot]
    agent: Channel

    def take(
        self, step: int, *, persist: bool = False, replicate: bool = False, disk: bool = False, last: bool = False
    ) -> bool:
        how = {"is_persisted": persist, "is_replicated": replicate, "is_on_disk": disk, "is_last": last}
        taken = self.snapshotter.take(step, lambda: parts_of(step), SMALL.copy, **how)
        self.snapshotter.wait()
        return taken

    def train_to(self, step: int) -> None:
        """Take it; then all ranks agree that they have it."""
        assert self.take(step)
        self.snapshotter.common_step = step

    def sealed(self) -> list[int]:
        return sorted(slot.header().step for slot in self.slots if slot.header().state is SlotState.sealed)

    def slot_of(self, step: int) -> int:
        (slot,) = [index for index, slot in enumerate(self.slots) if slot.header().step == step]
        return slot


@pytest.fixture
def a_rank() -> Iterator[Callable[..., Rank]]:
    made: list[Rank] = []

    def make(num_slots: int, held: tuple[int, ...] = ()) -> Rank:
        shape = slot_shape(parts_of(0))
        slots = [Slot(create_slot(f"test-{index}", shape.slot_bytes)) for index in range(num_slots)]
        for slot in slots:
            slot.format(shape)
        here, there = Channel.pair()
        config = CheckpointConfig(retry_timeout_s=11.0, final_timeout_s=22.0)
        where = {"url": "/store", "disk_folder": "/scratch/run"}
        how = {"attempt": 2, "world_size": 4, "config": config}
        snapshotter = Snapshotter(here, slots, held, Staging(torch.device("cpu"), 1), **how, **where)
        made.append(Rank(snapshotter, slots, Channel(there)))
        return made[-1]

    yield make
    for rank in made:
        rank.snapshotter.close()
        rank.agent.close()
        rank.snapshotter._channel.close()
        for slot in rank.slots:
            os.close(slot.descriptor)


def test_wait_returns_once_the_copy_is_sealed_and_whole(a_rank):
    rank = a_rank(2)
    assert rank.snapshotter.sealed_step == NO_STEP
    assert rank.take(7)
    slot = rank.slots[rank.slot_of(7)]
    assert rank.snapshotter.sealed_step == 7
    assert slot.is_sound()
    assert slot.small() == SMALL
    assert (slot.header().step, slot.header().attempt) == (7, 2)
    read = SlotReader(slot).read
    np.testing.assert_array_equal(read("b", "master", 10, 600), np.full(600, 7, np.float32))
    np.testing.assert_array_equal(read("a", "exp_avg", 11, 5), np.full(5, -7, np.float32))
    assert not rank.agent.ready()  # neither to storage nor to a peer: the agent need not know


def test_wait_with_nothing_under_way_returns_at_once(a_rank):
    assert a_rank(2).snapshotter.wait() >= 0


def test_a_shape_has_the_parts_behind_each_other():
    shape = slot_shape(parts_of(0))
    assert shape.num_floats == 1600
    assert [(p.extent.name, p.extent.kind, p.first) for p in shape.extents] == [
        ("a", "master", 0),
        ("b", "master", 400),
        ("a", "exp_avg", 1000),
    ]


def test_what_stops_the_copy_is_raised_by_wait(a_rank):
    rank = a_rank(2)
    (first, second) = parts_of(1)
    too_many = [first, second, second]
    rank.snapshotter.take(1, lambda: too_many, SMALL.copy, is_persisted=False, is_replicated=False)
    with pytest.raises(RuntimeError):
        rank.snapshotter.wait()
    assert rank.sealed() == []


@pytest.mark.parametrize("num_slots", [2, 3, 5])
def test_the_newest_that_every_rank_has_is_never_overwritten(a_rank, num_slots):
    rank = a_rank(num_slots)
    for step in range(1, 12):
        assert rank.take(step)
        assert rank.snapshotter.common_step in (NO_STEP, *rank.sealed())
        rank.snapshotter.common_step = step
        assert step in rank.sealed()


def test_with_two_slots_no_third_is_taken_until_the_ranks_agree(a_rank):
    rank = a_rank(2)
    assert rank.take(1)
    assert rank.take(2)
    assert not rank.take(3)
    assert rank.sealed() == [1, 2]
    rank.snapshotter.common_step = 2
    assert rank.take(3)
    assert rank.sealed() == [2, 3]


def test_after_a_restart_what_the_peer_has_a_copy_of_is_kept_until_there_is_a_newer_one(a_rank):
    """A node that is lost before that goes back to it: all others must have it, too."""
    rank = a_rank(4)
    rank.train_to(5)
    rank.train_to(6)
    rank.snapshotter.restored_from(6, copied_step=5)
    assert not rank.snapshotter.is_replicating
    for step in range(7, 12):
        rank.train_to(step)
        assert {5, step} <= set(rank.sealed())
    rank.snapshotter.common_replicated_step = rank.snapshotter.replicated_step = 11
    rank.train_to(12)
    rank.train_to(13)
    assert 5 not in rank.sealed()


def test_a_copy_of_what_comes_after_the_restored_step_counts_for_nothing(a_rank):
    rank = a_rank(2)
    rank.train_to(5)
    rank.snapshotter.restored_from(5, copied_step=9)
    assert rank.snapshotter.replicated_step == NO_STEP


def test_after_a_restart_the_step_that_was_restored_is_kept(a_rank):
    rank = a_rank(2)
    rank.train_to(5)
    rank.snapshotter.restored_from(5)
    assert (rank.snapshotter.common_step, rank.snapshotter.sealed_step) == (5, 5)
    assert rank.take(6)
    assert not rank.take(7)
    assert rank.sealed() == [5, 6]


@pytest.mark.parametrize(("num_slots", "may_go_on"), [(2, False), (3, True)])
def test_a_slot_on_its_way_to_storage_is_held(a_rank, num_slots, may_go_on):
    """Two slots: one is on its way, the other the newest. With a third, training's snapshots go on."""
    rank = a_rank(num_slots)
    assert rank.take(1, persist=True)
    assert rank.snapshotter.num_persisting == 1
    rank.snapshotter.common_step = 1
    rank.train_to(2)
    for step in (3, 4, 5):
        assert rank.take(step) is may_go_on
        assert 1 in rank.sealed()
        rank.snapshotter.common_step = max(rank.sealed())
    rank.snapshotter.persisted(rank.slot_of(1), 1, is_disk=False)
    assert rank.snapshotter.num_persisting == 0
    assert rank.take(6)
    assert 1 not in rank.sealed()


def test_a_slot_that_an_earlier_attempt_left_on_its_way_is_held(a_rank):
    rank = a_rank(2, held=(0,))
    rank.train_to(1)
    assert rank.slot_of(1) == 1
    assert not rank.take(2)
    rank.snapshotter.persisted(0, None, is_disk=False)
    assert rank.take(2)
    assert rank.slot_of(2) == 0


def test_the_agent_is_asked_once_the_slot_is_sealed(a_rank):
    rank = a_rank(3)
    rank.take(1, persist=True, replicate=True)
    assert rank.agent.receive() == {"kind": "replicate", "step": 1, "slot": rank.slot_of(1)}
    asked = rank.agent.receive()
    wanted = {"kind": "persist", "step": 1, "slot": rank.slot_of(1), "url": "/store", "world_size": 4}
    assert wanted.items() <= asked.items()
    assert (asked["is_last"], asked["timeout_s"]) == (False, 11.0)
    rank.take(2, persist=True, last=True)
    asked = rank.agent.receive()
    assert (asked["step"], asked["is_last"], asked["timeout_s"]) == (2, True, 22.0)


def test_an_agent_that_is_gone_stops_no_snapshot(a_rank):
    rank = a_rank(3)
    rank.agent.close()
    assert rank.take(1, persist=True, replicate=True)
    assert rank.sealed() == [1]


def test_a_slot_is_held_until_both_its_readers_are_done(a_rank):
    rank = a_rank(2)
    rank.take(1, persist=True, replicate=True)
    slot = rank.slot_of(1)
    rank.snapshotter.common_step = 1
    rank.train_to(2)
    rank.snapshotter.persisted(slot, 1, is_disk=False)
    assert not rank.take(3)
    rank.snapshotter.replicated(slot, None)  # given up: a copy that is there would keep it
    assert rank.take(3)


def test_a_rank_says_whether_its_last_copy_is_on_its_way(a_rank):
    rank = a_rank(5)
    snapshotter = rank.snapshotter
    assert not snapshotter.is_replicating
    rank.take(1, replicate=True)
    assert snapshotter.is_replicating
    snapshotter.replicated(rank.slot_of(1), None)  # an earlier attempt's
    assert snapshotter.is_replicating
    snapshotter.replicated(rank.slot_of(1), 1)
    assert (snapshotter.is_replicating, snapshotter.replicated_step) == (False, 1)


def test_a_step_goes_to_the_disk_and_to_storage_and_its_slot_is_held_for_both(a_rank):
    rank = a_rank(3)
    assert rank.take(1, persist=True, disk=True)
    slot, snapshotter = rank.slot_of(1), rank.snapshotter
    asked = [rank.agent.receive() for _ in range(2)]
    assert [(m["url"], m["is_disk"], m["timeout_s"]) for m in asked] == [
        ("/scratch/run", True, 0.0),
        ("/store", False, 11.0),
    ]
    assert {(m["step"], m["slot"]) for m in asked} == {(1, slot)}
    assert (snapshotter.is_going_to_disk, snapshotter.num_persisting) == (True, 1)
    snapshotter.persisted(slot, 1, is_disk=True)
    assert (snapshotter.is_going_to_disk, snapshotter.num_persisting) == (False, 1)
    snapshotter.common_step = 1
    rank.train_to(2)
    assert 1 in rank.sealed()
    snapshotter.persisted(slot, 1, is_disk=False)
    assert snapshotter.num_persisting == 0


def test_the_step_that_all_peers_hold_is_kept_here_too(a_rank):
    """Ranks of nodes that live go back to it together with the lost ones."""
    rank = a_rank(5)
    rank.take(1, replicate=True)
    rank.snapshotter.replicated(rank.slot_of(1), 1)
    rank.snapshotter.common_step = rank.snapshotter.common_replicated_step = 1
    for step in range(2, 9):
        rank.train_to(step)
        assert 1 in rank.sealed()
    rank.take(9, replicate=True)
    rank.snapshotter.replicated(rank.slot_of(9), 9)
    rank.snapshotter.common_step = rank.snapshotter.common_replicated_step = 9
    for step in range(10, 16):
        rank.train_to(step)
        assert 9 in rank.sealed()
    assert 1 not in rank.sealed()


@pytest.mark.parametrize("num_slots", [3, 5])
def test_a_copy_that_has_arrived_is_kept_here_until_all_have(a_rank, num_slots):
    """The other ranks' copies of step 9 arrive later than this one's: until then losing a node goes back to step 1,
    and from then on to step 9, which this rank must still have."""
    rank = a_rank(num_slots)
    rank.take(1, replicate=True)
    rank.snapshotter.replicated(rank.slot_of(1), 1)
    rank.snapshotter.common_step = rank.snapshotter.common_replicated_step = 1
    rank.take(9, replicate=True)
    rank.snapshotter.replicated(rank.slot_of(9), 9)
    for step in range(10, 16):
        if rank.take(step):
            rank.snapshotter.common_step = step
        assert {1, 9} <= {*rank.sealed()}
    rank.snapshotter.common_replicated_step = 9
    for step in range(16, 20):
        assert rank.take(step)
        rank.snapshotter.common_step = step
        assert 9 in rank.sealed()
    assert 1 not in rank.sealed()


def test_a_sealed_slot_can_be_copied_later(a_rank):
    rank = a_rank(3)
    rank.train_to(1)
    rank.snapshotter.replicate(1)
    slot = rank.slot_of(1)
    assert rank.agent.receive() == {"kind": "replicate", "step": 1, "slot": slot}
    assert rank.snapshotter.is_replicating
    for step in (2, 3, 4):
        rank.train_to(step)
    assert 1 in rank.sealed()
    rank.snapshotter.replicated(slot, 1)
    assert (rank.snapshotter.is_replicating, rank.snapshotter.replicated_step) == (False, 1)
    with pytest.raises(RuntimeError, match="no slot holds step 2"):
        rank.snapshotter.replicate(2)
