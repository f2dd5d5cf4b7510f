"""What a rank and its snapshots really take of a node, against what `phalanx plan` says: real ranks, real slots."""

import functools

import pytest
from rank.ranks import Heard, Ranks, open_run

from orchestrator.control.snapshotmemory import process_bytes, snapshot_memory
from orchestrator.placement import planned_placement

pytestmark = pytest.mark.real

WORLD = 2
LARGER = ("model.hidden_size=192", "model.num_layers=4", "model.ffn_hidden_size=768", "train.steps=6")
"""2.3 M parameters: a slot of 27 MB with one rank, 14 MB with two."""
TOLERANCE = 0.02
"""Of what is planned: ZeRO pads its partitions, and an index is as long as the names are."""
PROCESS_TOLERANCE = 0.1


def trained(ranks: Ranks, root, *words: str) -> Heard:
    ranks.agent.keep_snapshots(None, 0, 0)
    run = open_run(ranks.data, root, f"cluster.num_workers={WORLD}", *LARGER, *words)
    return ranks.train(run)


@pytest.fixture(scope="module")
def larger(ranks, tmp_path_factory):
    """`LARGER` trained at a ZeRO stage, once: what was heard, and the bytes of its slots."""

    @functools.cache
    def at_stage(stage: int) -> tuple[Heard, int]:
        heard = trained(ranks, tmp_path_factory.mktemp("larger"), f"parallel.zero_stage={stage}")
        return heard, ranks.agent.memory()["bytes"]

    return at_stage


def planned(heard: Heard):
    placement = planned_placement(heard.run.config.cluster, "cpu")
    return snapshot_memory(heard.run.config, heard.run.plan, placement)


def check_peak(heard: Heard) -> None:
    """Peak resident memory of the fullest rank, the process itself included."""
    measured = max(row.memory_bytes for row in heard.rows.values())
    assert process_bytes(heard.run.plan, planned(heard)) == pytest.approx(measured, rel=PROCESS_TOLERANCE)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_slots_take_what_is_planned(larger, stage):
    heard, slot_bytes = larger(stage)
    assert slot_bytes == pytest.approx(planned(heard).snapshot_bytes, rel=TOLERANCE)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_rank_takes_what_is_planned(larger, stage):
    check_peak(larger(stage)[0])


@pytest.mark.parametrize(
    "words",
    [
        ("model.hidden_size=64", "model.num_layers=2", "model.ffn_hidden_size=176", "parallel.zero_stage=2"),
        ("cluster.num_workers=1", "parallel.zero_stage=2"),
        ("cluster.num_workers=4", "parallel.zero_stage=2"),
        ("train.precision=bf16", "parallel.zero_stage=3"),
        ("parallel.offload=optimizer", "parallel.zero_stage=2"),
        ("optim.name=sgd", "optim.lr=0.1", "parallel.zero_stage=1"),
        ("model.dropout=0.1", "parallel.zero_stage=0"),
        ("train.seq_len=128", "train.micro_batch_size=16", "train.global_batch_size=32", "parallel.zero_stage=2"),
        (
            "train.seq_len=128",
            "train.micro_batch_size=16",
            "train.global_batch_size=32",
            "parallel.zero_stage=2",
            "parallel.activation_checkpointing=true",
        ),
    ],
    ids=["tiny", "alone", "four", "bf16", "offload", "sgd", "dropout", "activations", "recomputed"],
)
def test_a_rank_takes_what_is_planned_in_other_shapes_too(ranks, tmp_path, words):
    check_peak(trained(ranks, tmp_path, *words))


def test_a_snapshot_every_step_costs_its_slots_and_no_second_copy(ranks, tmp_path):
    """The rank's peaks, shared slots among them, with a snapshot every step against none at all. One rank: its slot
    holds the whole state, three times the parameters, and it has none of gloo's copies of them, of which two equal
    runs hold one or two more or fewer at their peaks.
    """
    peaks = {}
    for every in (0, 1):
        words = ("cluster.num_workers=1", "parallel.zero_stage=2", f"snapshot.every_steps={every}")
        heard = trained(ranks, tmp_path / str(every), *words)
        peaks[every] = max(row.memory_bytes for row in heard.rows.values())
    memory = planned(heard)
    assert peaks[1] - peaks[0] <= (memory.slots + 0.5) * memory.slot_bytes
