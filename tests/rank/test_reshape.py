"""A checkpoint of any world and stage loads into any other: bit-equal tensors, then the same training."""

import itertools
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from rank.ranks import Heard, Ranks, open_run

from model.partition import FETCH_ELEMENTS
from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.reader import CheckpointReader
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import logical_digest, verify

pytestmark = pytest.mark.real

SAVED = 5
LAST = 8
WORDS = ("optim.lr=3e-3", f"train.steps={LAST}", f"checkpoint.every_steps={SAVED}")
SEED = 5
Layout = tuple[int, int]
"""World size and ZeRO stage."""
LAYOUTS: list[Layout] = list(itertools.product((1, 2, 3, 4, 6), (0, 1, 2, 3)))
SHOWN = [((2, 2), loaded_by) for loaded_by in itertools.product((1, 3, 4), (0, 1, 2, 3))]
"""Always tried: saved by world 2 at stage 2, loaded by other worlds at every stage."""
ADAM = ("master", "exp_avg", "exp_avg_sq")
FP32 = 1e-5
"""Relative."""
BF16 = 5e-3


def train_on(ranks: Ranks, root: Path, *words: str, world: int = 2, stage: int = 2) -> Heard:
    return ranks.run(root, *WORDS, *words, world=world, stage=stage)


def reshaped(ranks: Ranks, origin: Heard, *words: str, world: int, stage: int) -> Heard:
    """Loads the origin's checkpoint, saves it again into a store of its own, then goes on."""
    root = origin.run.folder.path.parent
    store = root / f"world_{world}_stage_{stage}"
    sizes = [f"cluster.num_workers={world}", f"parallel.zero_stage={stage}", f"checkpoint.url={store}"]
    run = open_run(ranks.data, root, *WORDS, *words, *sizes, like=origin.run)
    return ranks.train(run, origin.resume_at(SAVED, is_durable=False))


def after(heard: Heard) -> list[float]:
    return [heard.rows[step].loss for step in range(SAVED + 1, LAST + 1)]


def assert_same_tensors(found: Heard, origin: Heard, kinds: tuple[str, ...] = ADAM) -> None:
    assert verify(Store(found.run.checkpoint_url), SAVED) == []
    ours, theirs = (CheckpointReader.open(heard.checkpoint(SAVED)) for heard in (found, origin))
    assert ours.shapes == theirs.shapes
    for name in theirs.shapes:
        assert ours.kinds(name) == theirs.kinds(name) == kinds
        for kind in kinds:
            np.testing.assert_array_equal(ours.read(name, kind), theirs.read(name, kind), err_msg=f"{kind} of {name}")
            assert np.any(theirs.read(name, kind)), f"{kind} of {name} is all zeros: equality would say nothing"
    assert logical_digest(ours) == logical_digest(theirs)
    assert ours.marker.data == theirs.marker.data
    assert ours.marker.identity == theirs.marker.identity


@pytest.fixture(scope="module")
def origin(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Heard:
    """Undisturbed, world 2, stage 2, saved after five of eight steps."""
    return train_on(ranks, tmp_path_factory.mktemp("origin"))


def test_what_is_committed_is_whole(origin):
    store = Store(origin.run.checkpoint_url)
    assert sorted(origin.markers) == [SAVED, LAST]
    assert [verify(store, step) for step in (SAVED, LAST)] == [[], []]
    digests = {logical_digest(CheckpointReader.open(origin.checkpoint(step))) for step in (SAVED, LAST)}
    assert len(digests) == 2
    assert store.exists(f"{step_folder(SAVED)}/COMMITTED.json")


class Savers:
    """Of each layout one run, made when it is first asked for: saved after five of eight steps."""

    def __init__(self, ranks: Ranks, origin: Heard, root: Path) -> None:
        self._ranks = ranks
        self._origin = origin
        self._root = root
        self._found: dict[Layout, Heard] = {(2, 2): origin}

    def saver(self, layout: Layout) -> Heard:
        if layout not in self._found:
            world, stage = layout
            root = self._root / f"saved_by_{world}_{stage}"
            sizes = [f"cluster.num_workers={world}", f"parallel.zero_stage={stage}"]
            run = open_run(self._ranks.data, root, *WORDS, *sizes, like=self._origin.run)
            self._found[layout] = self._ranks.train(run)
        return self._found[layout]


def check_pair(ranks: Ranks, saver: Heard, saved_by: Layout, loaded_by: Layout) -> None:
    found = reshaped(ranks, saver, world=loaded_by[0], stage=loaded_by[1])
    assert_same_tensors(found, saver)
    assert (found.markers[SAVED].world_size, found.markers[SAVED].zero_stage) == loaded_by
    if saved_by == loaded_by:
        assert after(found) == after(saver)
    else:
        assert after(found) == pytest.approx(after(saver), rel=FP32)
    digests = [[heard.rows[step].batch_digest for step in range(SAVED + 1, LAST + 1)] for heard in (found, saver)]
    assert digests[0] == digests[1]
    shutil.rmtree(found.run.checkpoint_url)


def sampled_pairs(count: int) -> list[tuple[Layout, Layout]]:
    """SHOWN and `count` drawn ones: each world and stage loads and is loaded at least once; few savers, because each
    is a run of its own."""
    rng = random.Random(SEED)
    savers = [(2, 2), *rng.sample([layout for layout in LAYOUTS if layout != (2, 2)], 3)]
    loaders = rng.sample(LAYOUTS, len(LAYOUTS))
    drawn = [(savers[number % len(savers)], loader) for number, loader in enumerate(loaders[:count])]
    return list(dict.fromkeys([*SHOWN, *drawn]))


COUNTS = [pytest.param(14, id="sample"), pytest.param(None, id="all", marks=pytest.mark.soak)]


@pytest.mark.parametrize("count", COUNTS)
def test_any_layout_loads_what_any_other_saved(ranks, origin, tmp_path, count):
    """Each pair of layouts: bit-equal tensors; then the same losses, to the bit where the layout is the same."""
    pairs = list(itertools.product(LAYOUTS, LAYOUTS)) if count is None else sampled_pairs(count)
    savers, failed = Savers(ranks, origin, tmp_path), []
    started = time.monotonic()
    for number, (saved_by, loaded_by) in enumerate(pairs, 1):
        try:
            check_pair(ranks, savers.saver(saved_by), saved_by, loaded_by)
        except AssertionError as error:
            failed.append(f"saved by {saved_by}, loaded by {loaded_by}: {error}")
        if number % 20 == 0:
            print(
                f"{number} of {len(pairs)} pairs, {len(failed)} failed, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    assert not failed, "\n".join(failed[:5])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_same_world_and_stage_goes_on_to_the_last_bit(ranks, tmp_path, stage):
    """Dropout too: its masks come from the step and the sample's place."""
    undisturbed = train_on(ranks, tmp_path, "model.dropout=0.1", stage=stage)
    resumed = ranks.train(undisturbed.run, undisturbed.resume_at(SAVED))
    assert sorted(resumed.rows) == list(range(SAVED + 1, LAST + 1))
    assert after(resumed) == after(undisturbed)
    # Both attempts committed the last step; the second wrote files of its own.
    assert resumed.markers[LAST].attempt != undisturbed.markers[LAST].attempt
    assert [resumed.rows[step].grad_norm for step in resumed.rows] == [
        undisturbed.rows[step].grad_norm for step in resumed.rows
    ]


def test_bf16_checkpoints_hold_fp32_masters(ranks, tmp_path):
    """The masters must not be a rounded copy of the bf16 weights."""
    words = ("train.precision=bf16",)
    undisturbed = train_on(ranks, tmp_path, *words)
    reader = CheckpointReader.open(undisturbed.checkpoint(SAVED))
    bits = np.concatenate([reader.read(name).view(np.uint32) & 0xFFFF for name in reader.shapes])
    assert np.count_nonzero(bits) > 0.9 * bits.size
    for world, stage in ((1, 1), (3, 3), (4, 2)):
        found = reshaped(ranks, undisturbed, *words, world=world, stage=stage)
        assert_same_tensors(found, undisturbed)
        assert after(found) == pytest.approx(after(undisturbed), rel=BF16)
    for stage in (2, 3):
        first = train_on(ranks, tmp_path / f"stage_{stage}", *words, stage=stage)
        assert after(ranks.train(first.run, first.resume_at(SAVED))) == after(first)


def test_the_precision_may_change_and_change_back(ranks, origin, tmp_path):
    """fp32 -> bf16 -> fp32: the masters stay fp32, to the bit."""
    in_bf16 = reshaped(ranks, origin, "train.precision=bf16", world=3, stage=2)
    assert_same_tensors(in_bf16, origin)
    assert in_bf16.markers[SAVED].precision == "bf16"
    assert after(in_bf16) == pytest.approx(after(origin), rel=BF16)
    words = (*WORDS, f"checkpoint.url={tmp_path}/back", "cluster.num_workers=2", "parallel.zero_stage=2")
    run = open_run(ranks.data, tmp_path, *words, like=origin.run)
    back = ranks.train(run, in_bf16.resume_at(SAVED, is_durable=False))
    assert_same_tensors(back, origin)
    assert after(back) == after(origin)


@pytest.mark.parametrize(("momentum", "kinds"), [("0.9", ("master", "momentum")), ("0", ("master",))])
def test_sgd_is_reshaped_with_its_momentum(ranks, tmp_path, momentum, kinds):
    words = ("optim.name=sgd", "optim.lr=0.3", "optim.weight_decay=0", f"optim.momentum={momentum}")
    undisturbed = train_on(ranks, tmp_path, *words)
    found = reshaped(ranks, undisturbed, *words, world=3, stage=3)
    assert_same_tensors(found, undisturbed, kinds)
    assert after(found) == pytest.approx(after(undisturbed), rel=FP32)


@pytest.mark.parametrize("stage", [1, 3])
def test_offloaded_state_is_saved_and_loaded(ranks, origin, stage):
    found = reshaped(ranks, origin, "parallel.offload=optimizer", world=2, stage=stage)
    assert_same_tensors(found, origin)
    assert after(found) == pytest.approx(after(origin), rel=FP32)


def test_a_tensor_that_is_read_in_several_ranges(ranks, tmp_path):
    """A restore holds no more than one of them beside the rank's own share."""
    wide = FETCH_ELEMENTS // 256 + 500
    words = ("model.hidden_size=256", f"model.ffn_hidden_size={wide}", "snapshot.slots=2")
    undisturbed = train_on(ranks, tmp_path, *words, world=1, stage=0)
    assert max(entry.numel for entry in undisturbed.markers[SAVED].tensors.values()) > FETCH_ELEMENTS
    found = reshaped(ranks, undisturbed, *words, world=1, stage=2)
    assert_same_tensors(found, undisturbed)


def test_round_robin_gradients_are_mapped(ranks, origin):
    """DeepSpeed then deals parameters out in another order."""
    words = ("parallel.ds_config={zero_optimization:{round_robin_gradients:true}}",)
    found = reshaped(ranks, origin, *words, world=2, stage=2)
    assert_same_tensors(found, origin)
    assert after(found) == pytest.approx(after(origin), rel=FP32)
