"""Rows out of shards, and what the checks say about damaged ones."""

import dataclasses
import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prepared import stream_of, write_shards

from orchestrator.data.manifest import Manifest
from orchestrator.data.shards import (
    VERIFIED_AT_START_BYTES,
    TokenReader,
    check_shards,
    read_manifest,
    shard_bytes,
    verify_at_start,
    verify_shards,
)
from orchestrator.errors import DataError


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), seq_len=st.integers(1, 12))
def test_rows_are_slices_of_the_joint_stream(tmp_path_factory, lengths, seq_len):
    folder = tmp_path_factory.mktemp("shards")
    reader = TokenReader(str(folder), write_shards(folder, lengths), "train", seq_len)
    stream = stream_of(folder, "train")
    ids = np.random.default_rng(len(lengths)).permutation(reader.num_rows)
    rows = reader.rows(ids)
    assert rows.shape == (reader.num_rows, seq_len + 1)
    for row_id, row in zip(ids, rows, strict=True):
        assert row.tolist() == stream[row_id * seq_len : row_id * seq_len + seq_len + 1].tolist()


def test_rows_of_a_url_are_those_of_the_folder(tmp_path):
    manifest = write_shards(tmp_path, [50, 3, 70], dtype="uint32")
    fsspec.filesystem("memory").put(str(tmp_path), "/reader-test", recursive=True)
    local = TokenReader(str(tmp_path), manifest, "train", 9)
    remote = TokenReader("memory://reader-test", read_manifest("memory://reader-test"), "train", 9)
    ids = np.array([12, 0, 5, 5, 4], dtype=np.int64)
    assert local.rows(ids).tolist() == remote.rows(ids).tolist()
    verify_shards("memory://reader-test", manifest)


@pytest.mark.parametrize("row", [-1, 13])
def test_a_row_outside_of_the_split_is_refused(tmp_path, row):
    reader = TokenReader(str(tmp_path), write_shards(tmp_path, [131]), "train", 10)
    assert reader.num_rows == 13
    with pytest.raises(IndexError, match="13 rows"):
        reader.rows(np.array([row]))


def test_a_folder_without_a_manifest_says_what_to_run(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError) as caught:
            read_manifest(str(folder))
        assert str(caught.value) == (
            f"data.path={folder} has no manifest.json; run: phalanx prepare data.source=... data.path={folder}"
        )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "phalanx-tokens-1"}', "\x00"])
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("dtype",), "float64"),
        (("dtype",), ["uint16"]),
        (("tokenizer", "vocab_size"), "300"),
        (("tokenizer", "file"), None),
        (("train", "tokens"), -1),
        (("train", "documents"), 1.5),
        (("validation", "text_bytes"), True),
        (("train", "shards", 0, "tokens"), "10"),
        (("train", "shards", 0, "file"), 7),
        (("source",), "here"),
    ],
)
def test_a_manifest_with_a_damaged_value_is_refused(tmp_path, keys, value):
    """Each once ended in a traceback, or passed `phalanx plan`."""
    write_shards(tmp_path, [10, 20])
    path = tmp_path / "manifest.json"
    raw = json.loads(path.read_text())
    *parents, last = keys
    inner = raw
    for key in parents:
        inner = inner[key]
    inner[last] = value
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match="is not a manifest that phalanx wrote"):
        read_manifest(str(tmp_path))


def test_a_sound_folder_passes(tmp_path):
    manifest = write_shards(tmp_path, [10, 20])
    assert read_manifest(str(tmp_path)) == manifest
    check_shards(str(tmp_path), manifest)
    verify_shards(str(tmp_path), manifest)


def test_check_names_every_problem_at_once(tmp_path):
    manifest = write_shards(tmp_path, [10, 20, 30])
    (tmp_path / "train_00000.bin").unlink()
    (tmp_path / "train_00001.bin").write_bytes(b"12345")
    (tmp_path / "tokenizer.json").write_text("another")
    with pytest.raises(DataError) as caught:
        check_shards(str(tmp_path), manifest)
    missing, short, tokenizer = caught.value.problems
    assert "train_00000.bin is missing" in missing
    assert "train_00001.bin has 5 bytes, the manifest says 40" in short
    assert "is not the tokenizer that the shards were made with" in tokenizer


def test_check_finds_a_manifest_that_contradicts_itself(tmp_path):
    manifest = write_shards(tmp_path, [10])
    wrong = dataclasses.replace(manifest.train.shards[0], tokens=9)
    with pytest.raises(DataError, match="9 tokens of 2 bytes"):
        check_shards(
            str(tmp_path),
            dataclasses.replace(manifest, train=dataclasses.replace(manifest.train, shards=(wrong,))),
        )


@pytest.mark.parametrize("verify", [verify_shards, verify_at_start])
def test_only_reading_finds_a_flipped_bit_and_another_shard_of_the_same_size(tmp_path, verify):
    manifest = write_shards(tmp_path, [10, 20, 30, 30])
    flip_a_bit(tmp_path / "train_00001.bin")
    (tmp_path / "train_00003.bin").write_bytes((tmp_path / "train_00002.bin").read_bytes())
    check_shards(str(tmp_path), manifest)
    with pytest.raises(DataError) as caught:
        verify(str(tmp_path), manifest)
    flipped, other = caught.value.problems
    assert "train_00001.bin is damaged or another file: its xxh3_128 is" in flipped
    assert "train_00003.bin is damaged or another file" in other
    assert flipped.endswith("; restore the files or prepare the data again in another folder")


def test_verify_names_every_problem_at_once_and_tells_what_it_reads(tmp_path):
    manifest = write_shards(tmp_path, [10, 20, 30, 40])
    (tmp_path / "train_00000.bin").unlink()
    (tmp_path / "train_00001.bin").write_bytes(b"12345")
    flip_a_bit(tmp_path / "train_00002.bin")
    read = []
    with pytest.raises(DataError) as caught:
        verify_shards(str(tmp_path), manifest, read.append)
    missing, short, flipped = caught.value.problems
    assert "train_00000.bin is missing" in missing
    assert "train_00001.bin has 5 bytes" in short
    assert "train_00002.bin is damaged" in flipped
    assert read == [60, 80]


def test_what_can_t_be_read_is_a_problem(tmp_path):
    manifest = write_shards(tmp_path, [10])
    (tmp_path / "train_00000.bin").unlink()
    (tmp_path / "train_00000.bin").symlink_to("/proc/self/mem")  # empty, and an error where it is read
    shard = dataclasses.replace(manifest.train.shards[0], bytes=0, tokens=0)
    split = dataclasses.replace(manifest.train, shards=(shard,), tokens=0)
    with pytest.raises(DataError, match=r"train_00000\.bin can't be read: Input/output error; restore the files"):
        verify_shards(str(tmp_path), dataclasses.replace(manifest, train=split))


def test_a_start_reads_neither_large_nor_remote_shards(tmp_path):
    large = write_shards(tmp_path / "large", [10])
    size = VERIFIED_AT_START_BYTES + 2
    os.truncate(tmp_path / "large" / "train_00000.bin", size)
    shard = dataclasses.replace(large.train.shards[0], bytes=size, tokens=size // 2)
    split = dataclasses.replace(large.train, shards=(shard,), tokens=size // 2)
    large = dataclasses.replace(large, train=split)
    assert shard_bytes(large) == size
    small = write_shards(tmp_path / "small", [10])
    flip_a_bit(tmp_path / "small" / "train_00000.bin")
    fsspec.filesystem("memory").put(str(tmp_path / "small"), "/start-test", recursive=True)
    for path, manifest in ((str(tmp_path / "large"), large), ("memory://start-test", small)):
        verify_at_start(path, manifest)
        with pytest.raises(DataError, match="is damaged"):
            verify_shards(path, manifest)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)


def test_a_manifest_survives_its_file(tmp_path):
    manifest = write_shards(tmp_path, [1, 2, 3])
    assert Manifest.from_json(manifest.to_json(), "here") == manifest
