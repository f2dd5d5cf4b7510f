from dataclasses import replace

import pytest

from launch.compose import compose
from launch.plan_text import plan_sections
from orchestrator.control.snapshotmemory import (
    SnapshotCounts,
    disk_words,
    fitting_snapshots,
    interval_words,
    memory_words,
    snapshot_memory,
    snapshot_words,
)
from orchestrator.memory import gigabytes
from orchestrator.placement import planned_placement
from orchestrator.plan import plan_run

NODES = ("cluster.num_workers=4", "cluster.workers_per_node=2")


def planned(*words):
    config = compose(["experiment=tiny_test", "cluster.device=cpu", *words]).config
    plan = plan_run(config, None, device="cpu")
    return config, plan, planned_placement(config.cluster, "cpu")


@pytest.mark.parametrize(
    ("words", "slots", "copies", "workers"),
    [
        (("cluster.num_workers=2",), 3, 0, 2),
        (("cluster.num_workers=2", "checkpoint.local_dir=/scratch"), 4, 0, 2),
        (NODES, 5, 2, 2),
        ((*NODES, "checkpoint.local_dir=/scratch"), 6, 2, 2),
        ((*NODES, "snapshot.replicate_every_steps=0"), 3, 0, 2),
        ((*NODES, "snapshot.slots=2"), 3, 2, 2),  # with peers the newest that all hold has a slot of its own
    ],
)
def test_slots_and_copies_by_hand(words, slots, copies, workers):
    config, plan, placement = planned(*words)
    memory = snapshot_memory(config, plan, placement)
    assert (memory.slots, memory.copies, memory.workers) == (slots, copies, workers)
    share = -(-plan.parameters * 12 // plan.batch.world_size) if plan.zero_stage else plan.parameters * 12
    assert share < memory.slot_bytes < share + 100_000
    assert memory.snapshot_bytes == (slots + copies) * memory.slot_bytes * workers


def test_at_stage_0_each_rank_holds_the_whole_state():
    whole, shared = (snapshot_memory(*planned(*NODES, f"parallel.zero_stage={stage}")) for stage in (0, 1))
    assert whole.slot_bytes > 3.5 * (shared.slot_bytes - 90_000)


def test_what_fits_is_left_as_it_is():
    config, plan, placement = planned(*NODES)
    needed = snapshot_memory(config, plan, placement).node_bytes
    for limit in (None, needed):
        found = fitting_snapshots(config, plan, placement, limit)
        assert (found.config, found.note, found.is_enough) == (config.snapshot, None, True)


def test_less_memory_costs_slots_first_and_then_the_copies():
    config, plan, placement = planned(*NODES)
    memory = snapshot_memory(config, plan, placement)
    step = memory.slot_bytes * memory.workers
    given = []
    for fewer in range(1, 7):
        found = fitting_snapshots(config, plan, placement, memory.node_bytes - fewer * step)
        given.append((found.memory.slots, found.memory.copies, found.is_enough))
        assert found.memory.node_bytes <= memory.node_bytes - fewer * step or not found.is_enough
        fitted = replace(config, snapshot=found.config)
        assert snapshot_memory(fitted, plan, placement) == found.memory
        assert found.note is not None
    assert given == [(4, 2, True), (3, 2, True), (4, 0, True), (3, 0, True), (2, 0, True), (2, 0, False)]


def test_one_sentence_says_what_was_given_up():
    config, plan, placement = planned(*NODES)
    memory = snapshot_memory(config, plan, placement)
    notes = [
        str(fitting_snapshots(config, plan, placement, memory.node_bytes - lacking).note)
        for lacking in (1, memory.snapshot_bytes // 2, memory.node_bytes - 1)
    ]
    assert "with 4 slots snapshots are left out while storage or a peer is busy" in notes[0]
    assert "no copies on peers" in notes[1]
    assert "use fewer workers on a node (cluster.workers_per_node)" in notes[2]
    assert all(note.startswith("a node has ") and "\n" not in note for note in notes)


def test_the_summary_names_every_tier_and_its_interval():
    words = snapshot_words(planned(*NODES, "checkpoint.local_dir=/scratch")[0], snapshot_memory(*planned(*NODES)))
    assert words.startswith("memory every step, peers every step, /scratch every 10 steps, storage every ")
    assert "5 slots and 2 copies of " in words
    config, plan, placement = planned("snapshot.every_steps=0", "checkpoint.every_steps=0")
    words = snapshot_words(config, snapshot_memory(config, plan, placement))
    assert words.startswith("memory with each checkpoint, storage at the end; 3 slots of ")


@pytest.mark.parametrize(
    ("words", "counts", "said"),
    [
        ((), (0, 0, None), None),
        ((), (90, 90, None), None),
        ((), (90, 45, None), "one every 2.0 steps instead of every step"),
        (("snapshot.every_steps=2",), (45, 30, None), "one every 3.0 steps instead of every 2 steps"),
        (NODES, (90, 90, 90), None),
        (NODES, (3, 3, 1), None),
        (NODES, (400, 400, 391), None),
        (NODES, (90, 90, 1), "copied to peers every 90.0 steps instead of every step"),
        (NODES, (90, 90, 0), "none of 90 steps has been copied to peers"),
        (NODES, (90, 90, 30), "copied to peers every 3.0 steps instead of every step"),
        ((*NODES, "snapshot.replicate_every_steps=3"), (90, 90, 30), None),
        (("snapshot.every_steps=0",), (9, 5, None), None),
    ],
)
def test_longer_intervals_are_told(words, counts, said):
    assert interval_words(planned(*words)[0], SnapshotCounts(*counts)) == said


def test_what_the_nodes_disks_take():
    words = [*NODES, "checkpoint.local_dir=/scratch", "checkpoint.local_every_steps=5", "parallel.zero_stage=0"]
    config, plan, placement = planned(*words)
    memory = snapshot_memory(config, plan, placement)
    node_bytes = 3 * 2 * -(-plan.parameters * 12 // 4)
    expected = f"on each node's disk /scratch every 5 steps, the newest 2: at most {gigabytes(node_bytes)}"
    assert disk_words(config, memory) == expected
    assert any(expected in section.lines for section in plan_sections(plan, placement, config))


def test_memory_in_words():
    said = memory_words(45_900_000, 46_100_000, 190_300_000)
    assert said == "snapshots 45.9 MB of a node, 46.1 MB planned; its agent 190.3 MB at most"
