import dataclasses
import random
import struct

import numpy as np
import pytest
import xxhash
from saving import flip_byte, make_marker, random_state, save, write

from orchestrator.checkpoint.commit import committed_steps, newest_valid
from orchestrator.checkpoint.layout import MARKER, MarkerFile, Piece
from orchestrator.checkpoint.marker import gather_payloads
from orchestrator.checkpoint.reader import CheckpointReader
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import logical_digest, verify
from orchestrator.errors import StoreError

SHAPES = {"b": (3,), "a": (2, 5)}


def saved(tmp_path, **options):
    store = Store(tmp_path)
    return store, save(store, 1, random_state(SHAPES), **options)


def test_a_sound_checkpoint_has_no_problems(tmp_path):
    store, _ = saved(tmp_path, world_size=3)
    assert verify(store, 1) == []


def test_every_flipped_byte_is_found(tmp_path):
    """Every position of the marker and of a rank's file, header included, each with a random mask."""
    store, marker = saved(tmp_path, world_size=1)
    rng = random.Random(0)
    for name in (MARKER, marker.files[0].file):
        path = tmp_path / "step_00000001" / name
        whole = path.read_bytes()
        for position in range(len(whole)):
            flip_byte(path, position, rng.randint(1, 255))
            assert verify(store, 1), f"byte {position} of {name}"
            path.write_bytes(whole)
    assert verify(store, 1) == []


def test_flips_and_truncations_are_walked_back(tmp_path):
    """A seeded sample: the newer checkpoint is damaged, the older one is taken, the reason is told."""
    rng = random.Random(1)
    for trial in range(40):
        folder = tmp_path / str(trial)
        store = Store(folder)
        save(store, 10, random_state(SHAPES, seed=1))
        newer = save(store, 20, random_state(SHAPES, seed=2))
        path = folder / "step_00000020" / rng.choice([MARKER, *(file.file for file in newer.files)])
        position = rng.randrange(path.stat().st_size)
        if trial % 2:
            flip_byte(path, position, rng.randint(1, 255))
        else:
            with path.open("r+b") as file:
                file.truncate(position)
        told: dict[int, str] = {}
        found = newest_valid(store, newer.fingerprint, told.__setitem__)
        assert found is not None
        assert found.step == 10
        assert list(told) == [20]
        assert path.name in told[20]
        assert committed_steps(store) == [10]
        assert newest_valid(store, newer.fingerprint, lambda *_: pytest.fail("told twice")) == found


def test_a_missing_and_a_longer_file_are_named(tmp_path):
    store, marker = saved(tmp_path, world_size=2)
    first, second = (tmp_path / "step_00000001" / file.file for file in marker.files)
    first.unlink()
    with second.open("ab") as file:
        file.write(b"x")
    problems = verify(store, 1)
    assert len(problems) == 2
    assert problems[0] == f"{first} is missing"
    assert f"{second} has {marker.files[1].bytes + 1:,} bytes" in problems[1]


def test_a_header_that_contradicts_the_marker_is_found(tmp_path):
    """Checksums agree, but the marker takes the elements from elsewhere in the file."""
    store, marker = saved(tmp_path, world_size=1)
    tensors = dict(marker.tensors)
    piece = tensors["b"].kinds["master"][0]
    moved = Piece(piece.file, piece.offset - 4, piece.start, piece.count)
    kinds = tensors["b"].kinds | {"master": (moved, *tensors["b"].kinds["master"][1:])}
    tensors["b"] = tensors["b"]._replace(kinds=kinds)
    store.write_atomic(f"step_00000001/{MARKER}", [dataclasses.replace(marker, tensors=tensors).to_json().encode()])
    (problem,) = verify(store, 1)
    assert "the header says" in problem
    assert "for master/b@" in problem
    del tensors["b"]
    store.write_atomic(f"step_00000001/{MARKER}", [dataclasses.replace(marker, tensors=tensors).to_json().encode()])
    assert all("which the marker does not name" in problem for problem in verify(store, 1))


def test_a_file_that_is_no_safetensors_is_found(tmp_path):
    store = Store(tmp_path)
    for content in (b"", b"\xff" * 20, struct.pack("<Q", 4) + b"[1] ", struct.pack("<Q", 2) + b"xx"):
        store.write_atomic("step_00000001/f", [content])
        file = MarkerFile("f", len(content), xxhash.xxh3_128_hexdigest(content), {})
        store.write_atomic(f"step_00000001/{MARKER}", [make_marker(1, files=(file,)).to_json().encode()])
        (problem,) = verify(store, 1)
        assert "no readable safetensors header" in problem


def test_gaps_are_found_though_every_byte_is_sound(tmp_path):
    store, marker = saved(tmp_path, world_size=1)
    tensors = dict(marker.tensors)
    tensors["a"] = tensors["a"]._replace(shape=(3, 5))
    store.write_atomic(f"step_00000001/{MARKER}", [dataclasses.replace(marker, tensors=tensors).to_json().encode()])
    assert "a (master): elements 10 to 14 are missing" in verify(store, 1)


def test_a_store_that_does_not_answer_is_no_damage(tmp_path):
    """A folder where the marker's file should be can't be read: an error, and nothing is set aside."""
    store, _ = saved(tmp_path)
    path = tmp_path / "step_00000001" / MARKER
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError):
        verify(store, 1)
    with pytest.raises(StoreError):
        newest_valid(store, None, lambda *_: pytest.fail("rejected"))
    assert not (tmp_path / "step_00000001" / "REJECTED.json").exists()


def independent_digest(state) -> str:
    """The contract's sentence, over whole arrays in memory."""
    content = b""
    for name in sorted(state):
        content += name.encode("utf-8")
        for kind in ("master", "exp_avg", "exp_avg_sq", "momentum"):
            if kind in state[name]:
                content += state[name][kind].astype("<f4").tobytes()
    return xxhash.xxh3_128_hexdigest(content)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_digest_depends_on_the_state_only(tmp_path, world_size):
    state = random_state({**SHAPES, "ü.weight": (4, 4), "empty": (0,), "frozen": (5,)}, frozen=("frozen",))
    store = Store(tmp_path)
    marker = save(store, 1, state, world_size=world_size, seed=world_size, zero_stage=world_size % 4)
    digest = logical_digest(CheckpointReader(store, marker))
    assert digest == independent_digest(state)
    state["a"]["exp_avg"][1, 2] = np.nextafter(state["a"]["exp_avg"][1, 2], np.float32(9))
    marker = save(store, 2, state, world_size=world_size)
    assert logical_digest(CheckpointReader(store, marker)) == independent_digest(state) != digest


def test_the_digest_takes_sgd_momentum_and_large_tensors(tmp_path):
    rng = np.random.default_rng(0)
    state = {"w": {kind: rng.random(2_500_001, np.float32) for kind in ("master", "momentum")}}
    store = Store(tmp_path)
    assert logical_digest(CheckpointReader(store, save(store, 1, state, world_size=2))) == independent_digest(state)


def test_uncommitted_payloads_do_not_verify(tmp_path):
    store = Store(tmp_path)
    write(store, 4, random_state(SHAPES))
    (problem,) = verify(store, 4)
    assert "step 4 was never committed" in problem
    assert gather_payloads([]) == ((), {})
