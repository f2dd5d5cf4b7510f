import itertools
import random
import secrets

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saving import random_state, save

from orchestrator.checkpoint.marker import DataState
from orchestrator.checkpoint.reader import CheckpointReader, read_marker
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointError

SHAPES = {"embed.weight": (7, 5), "bias": (11,), "scale": (), "empty": (0, 4), "frozen.weight": (3, 3)}


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype == np.float32 and left.tobytes() == right.tobytes()


@settings(max_examples=60, deadline=None)
@given(world_size=st.integers(1, 6), seed=st.integers(0, 2**32), data=st.data())
def test_any_range_reads_back_whatever_the_partition(world_size, seed, data):
    state = random_state(SHAPES, seed=seed, frozen=("frozen.weight",))
    store = Store(f"memory://{secrets.token_hex(8)}")
    try:
        reader = CheckpointReader(store, save(store, 1, state, world_size=world_size, seed=seed))
        assert dict(reader.shapes) == SHAPES
        for name, kinds in state.items():
            assert reader.kinds(name) == tuple(kinds)
            for kind, array in kinds.items():
                assert same_bits(reader.read(name, kind), array.reshape(-1))
                start = data.draw(st.integers(0, array.size))
                count = data.draw(st.integers(0, array.size - start))
                part = reader.read(name, kind, start, count)
                assert same_bits(part, array.reshape(-1)[start : start + count])
    finally:
        store.remove("")


def test_a_local_folder_opens_and_reads_into_given_memory(tmp_path):
    state = random_state(SHAPES)
    save(Store(tmp_path / "checkpoints"), 30, state, world_size=3, seed=4)
    reader = CheckpointReader.open(f"{tmp_path}/checkpoints/step_00000030/")
    assert reader.marker.data == DataState(30, (3, 5))
    buffer = np.zeros(40, np.float32)
    view = reader.read("embed.weight", "exp_avg", 3, 20, out=buffer[10:30])
    assert view.base is buffer
    np.testing.assert_array_equal(buffer[10:30], state["embed.weight"]["exp_avg"].reshape(-1)[3:23])
    assert not buffer[:10].any()
    assert not buffer[30:].any()


def test_resharding_reads_each_byte_once(tmp_path):
    """A tensor written by 5 ranks is read by 3, each its own share: together it is the tensor."""
    state = random_state({"w": (97,)})
    reader = CheckpointReader(Store(tmp_path), save(Store(tmp_path), 1, state, world_size=5, seed=9))
    bounds = [0, 40, 41, 97]
    parts = [reader.read("w", "exp_avg_sq", a, b - a) for a, b in itertools.pairwise(bounds)]
    assert same_bits(np.concatenate(parts), state["w"]["exp_avg_sq"])


def test_small_tensors(tmp_path):
    reader = CheckpointReader(Store(tmp_path), save(Store(tmp_path), 1, random_state({"w": (3,)}), world_size=2))
    np.testing.assert_array_equal(reader.small("rng/1"), np.arange(5, dtype=np.uint8))
    with pytest.raises(CheckpointError, match="no small tensor 'rng/2'"):
        reader.small("rng/2")


def test_what_is_not_held_is_named(tmp_path):
    state = random_state({"w": (10,), "frozen": (2,)}, frozen=("frozen",))
    reader = CheckpointReader(Store(tmp_path), save(Store(tmp_path), 1, state))
    with pytest.raises(CheckpointError, match="has no tensor 'v'"):
        reader.read("v")
    with pytest.raises(CheckpointError, match="has no exp_avg of frozen; it has master"):
        reader.read("frozen", "exp_avg")
    for start, count in [(0, 11), (10, 1), (-1, 2), (3, -1)]:
        with pytest.raises(CheckpointError, match="w were asked for, it has 10"):
            reader.read("w", "master", start, count)
    for out in (np.empty(9, np.float32), np.empty(10), np.empty(20, np.float32)[::2]):
        with pytest.raises(ValueError, match=r"out must be float32\[10\]"):
            reader.read("w", out=out)


def test_a_file_that_shrank_is_an_error_and_not_a_signal(tmp_path):
    store = Store(tmp_path)
    marker = save(store, 1, random_state({"w": (1000,)}), world_size=1)
    reader = CheckpointReader(store, marker)
    path = tmp_path / "step_00000001" / marker.files[0].file
    with path.open("r+b") as file:
        file.truncate(600)
    with pytest.raises(CheckpointError, match="is damaged: it ends at byte 600"):
        for kind in reader.kinds("w"):
            reader.read("w", kind)


@pytest.mark.parametrize("name", ["checkpoints", "step_x", "step_1"])
def test_only_a_step_folder_opens(tmp_path, name):
    with pytest.raises(CheckpointError, match="not a checkpoint folder"):
        CheckpointReader.open(str(tmp_path / name))


def test_without_a_marker_there_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="step 5 was never committed"):
        read_marker(Store(tmp_path), 5)


def test_a_renamed_folder_is_refused(tmp_path):
    save(Store(tmp_path), 1, random_state({"w": (3,)}))
    (tmp_path / "step_00000001").rename(tmp_path / "step_00000002")
    with pytest.raises(CheckpointError, match="the marker of step 1: the folder was renamed"):
        read_marker(Store(tmp_path), 2)


def test_random_ranges_of_a_local_save(tmp_path):
    state = random_state(SHAPES, seed=5)
    reader = CheckpointReader(Store(tmp_path), save(Store(tmp_path), 1, state, world_size=4, seed=6))
    rng = random.Random(7)
    for _ in range(200):
        name = rng.choice(list(SHAPES))
        flat = state[name]["master"].reshape(-1)
        start = rng.randint(0, flat.size)
        count = rng.randint(0, flat.size - start)
        assert same_bits(reader.read(name, "master", start, count), flat[start : start + count])
