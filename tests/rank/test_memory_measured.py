"""What snapshots really take of a node, against what `phalanx plan` says: real ranks, real slots."""

import pytest
from rank.ranks import Heard, Ranks, open_run

from orchestrator.control.snapshotmemory import snapshot_memory
from orchestrator.placement import place_workers, planned_nodes

pytestmark = pytest.mark.real

WORLD = 2
LARGER = ("model.hidden_size=192", "model.num_layers=4", "model.ffn_hidden_size=768", "train.steps=6")
"""1.9 M parameters: a slot of 11 MB, well above what else moves a process's peak."""
TOLERANCE = 0.02
"""Of what is planned: ZeRO pads its partitions, and an index is as long as the names are."""
NOISE_BYTES = 8 * 2**20
"""By which two equal runs' peaks differ."""


def trained(ranks: Ranks, root, *words: str) -> Heard:
    ranks.agent.keep_snapshots(None, 0)
    run = open_run(ranks.data, root, f"cluster.num_workers={WORLD}", *LARGER, *words)
    return ranks.train(run)


def planned(heard: Heard):
    cluster = heard.run.config.cluster
    placement = place_workers(cluster, "cpu", planned_nodes(cluster, device="cpu"))
    return snapshot_memory(heard.run.config, heard.run.plan, placement)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_slots_take_what_is_planned(ranks, tmp_path, stage):
    heard = trained(ranks, tmp_path, f"parallel.zero_stage={stage}")
    expected = planned(heard).snapshot_bytes
    assert ranks.agent.memory()["bytes"] == pytest.approx(expected, rel=TOLERANCE)


def test_a_snapshot_every_step_costs_its_slots_and_no_second_copy(ranks, tmp_path):
    """The ranks' peaks, shared slots among them, with a snapshot every step against none at all."""
    peaks = {}
    for every in (0, 1):
        heard = trained(ranks, tmp_path / str(every), "parallel.zero_stage=2", f"snapshot.every_steps={every}")
        peaks[every] = max(row.memory_bytes for step, row in heard.rows.items() if step < 6)
    memory = planned(heard)
    extra = peaks[1] - peaks[0]
    assert extra <= memory.slots * memory.slot_bytes + NOISE_BYTES
    assert memory.slot_bytes > NOISE_BYTES, "a second copy would show"
