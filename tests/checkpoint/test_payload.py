import json

import numpy as np
import pytest
import xxhash
from safetensors.numpy import load_file

from orchestrator.checkpoint.layout import Extent, Piece
from orchestrator.checkpoint.payload import DTYPES, write_payload
from orchestrator.checkpoint.store import CHUNK_BYTES, Store


def extents(*arrays):
    return [(Extent("w", "master", (100,), 10 * i, len(array)), array) for i, array in enumerate(arrays)]


def test_the_safetensors_library_reads_it(tmp_path):
    odd, more = np.arange(3, dtype=np.float32), np.arange(7, dtype=np.float32) + 0.5
    small = {"rng/0": np.arange(5, dtype=np.uint8), "steps": np.array(7), "mask": np.array([[True, False]])}
    written = write_payload(Store(tmp_path), "step_00000001", 2, 3, extents(odd, more), small)
    path = tmp_path / "step_00000001" / "rank_00002.attempt_003.safetensors"
    loaded = load_file(path)
    assert set(loaded) == {"master/w@0", "master/w@10", "small/rng/0", "small/steps", "small/mask"}
    np.testing.assert_array_equal(loaded["master/w@0"], odd)
    np.testing.assert_array_equal(loaded["master/w@10"], more)
    for key, array in small.items():
        np.testing.assert_array_equal(loaded[f"small/{key}"], array)
        assert loaded[f"small/{key}"].dtype == array.dtype
    data = path.read_bytes()
    assert written.file == path.name
    assert written.bytes == len(data)
    assert written.xxh3_128 == xxhash.xxh3_128_hexdigest(data)
    for piece, array in zip(written.tensors["w"].kinds["master"], (odd, more), strict=True):
        np.testing.assert_array_equal(np.frombuffer(data, "<f4", piece.count, piece.offset), array)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_small_tensors_of_every_type_are_kept_and_aligned(tmp_path, dtype):
    array = np.array([0, 1, 1], DTYPES[dtype])
    written = write_payload(Store(tmp_path), "s", 0, 1, extents(np.ones(3, np.float32)), {"x": array})
    entry = written.small["x"]
    assert entry.dtype == dtype
    assert entry.offset % array.itemsize == 0
    assert written.tensors["w"].kinds["master"][0].offset % 4 == 0
    np.testing.assert_array_equal(load_file(tmp_path / "s" / written.file)["small/x"], array)


def test_big_endian_and_strided_small_tensors_are_stored_little_and_flat(tmp_path):
    array = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    written = write_payload(Store(tmp_path), "s", 0, 1, [], {"x": array})
    np.testing.assert_array_equal(load_file(tmp_path / "s" / written.file)["small/x"], array)


def test_the_data_starts_at_a_multiple_of_8(tmp_path):
    for length in range(1, 17):
        extent = Extent("w" * length, "master", (1,), 0, 1)
        written = write_payload(Store(tmp_path), "s", 0, 1, [(extent, np.ones(1, np.float32))], {})
        assert written.tensors["w" * length].kinds["master"][0].offset % 8 == 0


def test_more_than_a_chunk(tmp_path):
    array = np.arange(CHUNK_BYTES // 4 + 3, dtype=np.float32)
    extent = Extent("w", "master", array.shape, 0, array.size)
    written = write_payload(Store(tmp_path), "s", 0, 1, [(extent, array)], {})
    np.testing.assert_array_equal(load_file(tmp_path / "s" / written.file)["master/w@0"], array)
    assert written.xxh3_128 == xxhash.xxh3_128_hexdigest((tmp_path / "s" / written.file).read_bytes())


def test_a_rank_without_elements_still_writes_its_file(tmp_path):
    written = write_payload(
        Store(tmp_path), "s", 0, 1, [(Extent("w", "master", (0, 4), 0, 0), np.empty(0, np.float32))], {}
    )
    assert written.tensors["w"].kinds == {"master": ()}
    assert written.tensors["w"].shape == (0, 4)
    assert load_file(tmp_path / "s" / written.file) == {}


def test_arrays_are_asked_for_when_their_bytes_are_due(tmp_path):
    asked = []

    def source(number):
        def fetch():
            asked.append(number)
            return np.full(2, number, np.float32)

        return fetch

    tensors = [(Extent("w", "master", (4,), 2 * i, 2), source(i)) for i in range(2)]
    written = write_payload(Store(tmp_path), "s", 0, 1, tensors, {})
    assert asked == [0, 1]
    loaded = load_file(tmp_path / "s" / written.file)
    np.testing.assert_array_equal(loaded["master/w@2"], [1, 1])


@pytest.mark.parametrize(
    "array",
    [
        np.ones(3, np.float64),
        np.ones(4, np.float32),
        np.ones((3, 1), np.float32),
        np.ones(6, np.float32)[::2],
    ],
)
def test_an_array_that_does_not_fit_its_extent_is_refused_and_nothing_is_left(tmp_path, array):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="master/w@0 must be 3 contiguous fp32 elements"):
        write_payload(store, "s", 0, 1, [(Extent("w", "master", (3,), 0, 3), array)], {})
    assert store.list("s") == []


def test_contradictions_are_refused(tmp_path):
    one = np.ones(1, np.float32)
    twice = [(Extent("w", "master", (1,), 0, 1), one)] * 2
    with pytest.raises(ValueError, match="same name, kind and start"):
        write_payload(Store(tmp_path), "s", 0, 1, twice, {})
    with pytest.raises(ValueError, match="small tensor 'x' has dtype"):
        write_payload(Store(tmp_path), "s", 0, 1, [], {"x": np.array(["text"])})


def test_the_header_is_plain_json_in_the_order_of_the_bytes(tmp_path):
    written = write_payload(Store(tmp_path), "s", 0, 1, extents(np.ones(3, np.float32)), {"n": np.arange(2)})
    data = (tmp_path / "s" / written.file).read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert json.loads(data[8 : 8 + length]) == {
        "small/n": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
        "master/w@0": {"dtype": "F32", "shape": [3], "data_offsets": [16, 28]},
    }
    assert written.tensors["w"].kinds["master"] == (Piece(written.file, 8 + length + 16, 0, 3),)
