import base64
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saving import flip_byte, make_marker, partition, random_state, save

from orchestrator.checkpoint import encryption
from orchestrator.checkpoint.commit import commit
from orchestrator.checkpoint.encryption import (
    CHUNK_BYTES,
    HEADER_BYTES,
    TAG_BYTES,
    SealedFile,
    plain_bytes,
    sealed,
    sealed_bytes,
)
from orchestrator.checkpoint.key import KEY_VARIABLE, Key, find_key, key_to_write
from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.marker import common_key_check, gather_payloads
from orchestrator.checkpoint.payload import write_payload
from orchestrator.checkpoint.reader import CheckpointReader, read_marker
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import logical_digest, verify
from orchestrator.errors import CheckpointError, CheckpointKeyError

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
STATE = random_state({"w": (700, 1000), "b": (3,), "empty": (0, 4)}, frozen=("b",))


def text_of(key: Key) -> str:
    return base64.b64encode(key.secret).decode()


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def save_encrypted(store: Store, step: int, key: Key = KEY, world_size: int = 2):
    import random

    dealt = partition(STATE, world_size, random.Random(step))
    small = [{f"rng/{rank}": np.arange(5, dtype=np.uint8)} for rank in range(world_size)]
    payloads = [
        write_payload(store, step_folder(step), rank, 1, dealt[rank], small[rank], key) for rank in range(world_size)
    ]
    files, tensors = gather_payloads(payloads)
    facts = encryption.facts(common_key_check(payloads) or "")
    marker = make_marker(step, world_size=world_size, files=files, tensors=tensors, encryption=facts)
    commit(store, marker)
    return marker


def sealed_file(folder: Path, data: bytes, key: Key = KEY, path: str = "f") -> SealedFile:
    store = Store(folder)
    store.write_atomic(path, sealed([data], key, path))
    assert store.size(path) == sealed_bytes(len(data))
    return SealedFile(store, path, sealed_bytes(len(data)), key)


def read(file: SealedFile, offset: int, count: int) -> bytes:
    out = bytearray(count)
    file.read_range(offset, count, memoryview(out))
    return bytes(out)


def test_restores_the_same_state_and_digest_as_without(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, text_of(KEY))
    plain_store, store = Store(tmp_path / "plain"), Store(tmp_path / "sealed", is_private=True)
    plain = CheckpointReader(plain_store, save(plain_store, 1, STATE))
    save_encrypted(store, 1)
    reader = CheckpointReader(store, read_marker(store, 1))
    assert logical_digest(reader) == logical_digest(plain)
    for name, kinds in STATE.items():
        for kind, array in kinds.items():
            assert np.array_equal(reader.read(name, kind), array.reshape(-1))
    assert np.array_equal(reader.read("w", "exp_avg", 123_456, 300_000), STATE["w"]["exp_avg"].flat[123_456:423_456])
    assert reader.small("rng/1").tolist() == [0, 1, 2, 3, 4]


def test_nothing_of_the_state_or_the_key_is_in_the_files(tmp_path):
    store = Store(tmp_path, is_private=True)
    save_encrypted(store, 1)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    sample = STATE["w"]["master"].tobytes()[4000:4064]
    assert len(files) == 3
    for file in files:
        data = file.read_bytes()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert sample not in data
        assert KEY.secret not in data
        assert text_of(KEY).encode() not in data
    assert text_of(KEY) not in repr(KEY)


def test_the_same_state_is_never_the_same_file(tmp_path):
    store = Store(tmp_path)
    first, second = save_encrypted(store, 1), save_encrypted(store, 2)
    assert {file.xxh3_128 for file in first.files}.isdisjoint(file.xxh3_128 for file in second.files)


def test_verifies_without_a_key_and_finds_damage(tmp_path):
    store = Store(tmp_path)
    marker = save_encrypted(store, 1)
    assert verify(store, 1) == []
    flip_byte(tmp_path / "step_00000001" / marker.files[0].file, 5000)
    assert "its checksum is" in verify(store, 1)[0]


def test_a_missing_and_a_wrong_key_are_one_sentence(tmp_path, monkeypatch):
    store = Store(tmp_path)
    reader = CheckpointReader(store, save_encrypted(store, 1))
    with pytest.raises(CheckpointKeyError, match=f"step_00000001 is encrypted; set {KEY_VARIABLE}") as caught:
        reader.read("w")
    assert caught.value.exit_code == 2
    monkeypatch.setenv(KEY_VARIABLE, text_of(OTHER))
    with pytest.raises(CheckpointKeyError, match=f"value is {KEY.check}, that of the key given is {OTHER.check}"):
        reader.read("w")


@pytest.mark.parametrize(
    "text", ["", "short", "a" * 44, text_of(KEY)[:-4], text_of(KEY) + "AAAA", "ż" * 44, "\udcff" * 44]
)
def test_a_malformed_key_is_refused_without_being_shown(text, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, text)
    with pytest.raises(CheckpointKeyError, match="is not the base64 text of 32 bytes") as caught:
        find_key(None)
    assert len(text) < 6 or text not in str(caught.value)
    with pytest.raises(CheckpointKeyError, match=r"checkpoint.key_file=.*nosuch can't be read"):
        find_key(str(tmp_path / "nosuch"))


def test_a_file_comes_before_the_environment(tmp_path, monkeypatch):
    with pytest.raises(CheckpointKeyError, match=r"checkpoint\.encrypt=true needs a key"):
        key_to_write(None)
    monkeypatch.setenv(KEY_VARIABLE, text_of(OTHER))
    (tmp_path / "key").write_text(text_of(KEY) + "\n")
    assert key_to_write(str(tmp_path / "key")) == KEY
    assert key_to_write(None) == OTHER


def test_ranks_with_different_keys_are_not_committed(tmp_path):
    store = Store(tmp_path)
    payloads = [write_payload(store, "step_00000001", rank, 1, [], {}, key) for rank, key in enumerate((KEY, None))]
    with pytest.raises(CheckpointError, match="different keys"):
        common_key_check(payloads)


SIZES = st.one_of(st.integers(0, 200), st.integers(-2, 2).map(lambda by: CHUNK_BYTES + by))


@settings(max_examples=30, deadline=None)
@given(size=SIZES, times=st.integers(1, 2), data=st.data())
def test_every_range_is_what_was_written(tmp_path_factory, size, times, data):
    content = os.urandom(size * times)
    file = sealed_file(tmp_path_factory.mktemp("sealed"), content)
    assert plain_bytes(sealed_bytes(len(content))) == len(content) == file.plain_bytes
    for _ in range(4):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, len(content)))
        assert read(file, start, end - start) == content[start:end]
    with pytest.raises(CheckpointError, match="bytes are needed"):
        read(file, 0, len(content) + 1)


def chunks_of(path: Path) -> tuple[bytes, list[bytes]]:
    data = path.read_bytes()
    step = CHUNK_BYTES + TAG_BYTES
    body = data[HEADER_BYTES:]
    return data[:HEADER_BYTES], [body[start : start + step] for start in range(0, len(body), step)]


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 0, 2], [0, 2], [0, 1], [0, 1, 2, 2], [0, 1, 1]])
def test_moved_lost_and_added_chunks_are_found(order, tmp_path):
    """Whoever can rewrite the marker, too, has made sizes and checksums agree: the tags still don't."""
    sealed_file(tmp_path, os.urandom(3 * CHUNK_BYTES))
    header, chunks = chunks_of(tmp_path / "f")
    changed = header + b"".join(chunks[index] for index in order)
    (tmp_path / "f").write_bytes(changed)
    file = SealedFile(Store(tmp_path), "f", len(changed), KEY)
    with pytest.raises(CheckpointError, match="is damaged"):
        read(file, 0, file.plain_bytes)


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, HEADER_BYTES + 300 + TAG_BYTES - 1), mask=st.integers(1, 255))
def test_every_flipped_byte_is_found(tmp_path_factory, position, mask):
    folder = tmp_path_factory.mktemp("flip")
    file = sealed_file(folder, bytes(300))
    flip_byte(folder / "f", position, mask)
    with pytest.raises(CheckpointError, match="is damaged"):
        read(file, 0, 1)


def test_a_file_in_another_files_place_is_found(tmp_path):
    sealed_file(tmp_path, b"of one rank", path="step_1/rank_00000")
    (tmp_path / "step_1" / "rank_00001").write_bytes((tmp_path / "step_1" / "rank_00000").read_bytes())
    file = SealedFile(Store(tmp_path), "step_1/rank_00001", sealed_bytes(11), KEY)
    with pytest.raises(CheckpointError, match="chunk 0 of 1 is not what was encrypted here"):
        read(file, 0, 11)
