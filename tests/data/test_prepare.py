"""`prepare` from text to shards: what comes out, that twice is once, and every refusal."""

import errno
import gzip
import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import xxhash
import zstandard
from prepared import documents, run_prepare, sentence, stream_of, texts_of, write_jsonl
from tokenizers import Tokenizer

from orchestrator.config import OnBad
from orchestrator.data.prepare import map_in_process
from orchestrator.data.shards import TokenReader, read_manifest, verify_shards
from orchestrator.data.tokenize import END_OF_TEXT, train_tokenizer
from orchestrator.errors import DataError


def everything_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Name -> (time of the last change, content) of every file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def refused(**settings) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        run_prepare(**settings)
    assert caught.value.exit_code == 2
    return caught.value.problems


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write_jsonl(tmp_path / "corpus.jsonl", documents(200))


@pytest.fixture
def tokenizer_file(tmp_path) -> Path:
    path = tmp_path / "given.json"
    path.write_text(train_tokenizer(documents(50), 280).to_str())
    return path


def test_every_document_comes_out_once_in_the_split_its_hash_says(corpus, tmp_path):
    target = tmp_path / "out"
    prepared = run_prepare(source=str(corpus), path=str(target), validation_fraction=0.2)
    texts = documents(200)
    in_validation = [xxhash.xxh3_64(text.encode()).intdigest() / 2**64 < 0.2 for text in texts]
    assert 20 < sum(in_validation) < 60
    assert texts_of(target, "train") == [t for t, v in zip(texts, in_validation, strict=True) if not v]
    assert texts_of(target, "validation") == [t for t, v in zip(texts, in_validation, strict=True) if v]
    manifest = prepared.manifest
    assert prepared.is_new
    assert manifest.train.documents + manifest.validation.documents == 200
    assert manifest.train.tokens == stream_of(target, "train").size
    assert manifest.train.text_bytes + manifest.validation.text_bytes == sum(len(t.encode()) for t in texts)
    assert manifest == read_manifest(str(target))
    verify_shards(str(target), manifest)
    assert sorted(path.name for path in target.iterdir()) == [
        "manifest.json",
        "tokenizer.json",
        "train_00000.bin",
        "validation_00000.bin",
    ]


def test_one_corpus_in_every_format_gives_the_same_tokens(tmp_path, tokenizer_file):
    texts = documents(60)
    lines = write_jsonl(tmp_path / "a.jsonl", texts, field="body")
    (tmp_path / "a.ndjson.gz").write_bytes(gzip.compress(lines.read_bytes()))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines.read_bytes()))
    pyarrow.parquet.write_table(pyarrow.table({"body": texts}), tmp_path / "a.parquet", row_group_size=7)
    (tmp_path / "many").mkdir()
    for index, text in enumerate(texts):
        (tmp_path / "many" / f"{index:03d}.txt").write_text(text)
    streams = []
    for index, name in enumerate(("a.jsonl", "a.ndjson.gz", "a.jsonl.zst", "a.parquet", "many/*.txt")):
        target = tmp_path / f"out{index}"
        run_prepare(
            source=str(tmp_path / name),
            path=str(target),
            text_field="body",
            tokenizer=str(tokenizer_file),
            vocab_size=None,
        )
        streams.append(stream_of(target, "train").tolist())
    assert streams[0]
    assert all(stream == streams[0] for stream in streams)


def test_source_and_target_may_be_urls(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/prepare-test/in/a.txt", sentence(1).encode())
    memory.pipe("/prepare-test/in/b.txt", sentence(2).encode())
    settings = {"source": "memory://prepare-test/in/*.txt", "path": "memory://prepare-test/out"}
    assert run_prepare(**settings).is_new
    assert not run_prepare(**settings).is_new
    manifest = read_manifest(settings["path"])
    verify_shards(settings["path"], manifest)
    tokenizer = Tokenizer.from_str(memory.cat("/prepare-test/out/tokenizer.json").decode())
    reader = TokenReader(settings["path"], manifest, "train", manifest.train.tokens - 1)
    tokens = reader.rows(np.array([0]))[0].tolist()
    eos = tokenizer.token_to_id(END_OF_TEXT)
    assert tokenizer.decode(tokens[: tokens.index(eos)]) == sentence(1)
    assert tokenizer.decode(tokens[tokens.index(eos) + 1 : -1]) == sentence(2)
    assert sorted(Path(name).name for name in memory.ls("/prepare-test/out", detail=False)) == [
        "manifest.json",
        "tokenizer.json",
        "train_00000.bin",
    ]


def test_twice_does_nothing_twice(corpus, tmp_path):
    settings = {"source": str(corpus), "path": str(tmp_path / "out")}
    first = run_prepare(**settings)
    before = everything_in(tmp_path / "out")

    def must_not_map(_task, _units):
        pytest.fail("nothing is left to do")

    second = run_prepare(map_tasks=must_not_map, **settings)
    assert not second.is_new
    assert second.manifest == first.manifest
    assert everything_in(tmp_path / "out") == before


def test_progress_ends_at_the_whole(corpus, tmp_path):
    progress = []
    prepared = run_prepare(source=str(corpus), path=str(tmp_path / "out"), progress=progress)
    assert progress[0].units_done == 0
    assert progress[-1].bytes_done == progress[-1].bytes_total == corpus.stat().st_size
    assert progress[-1].documents == 200
    assert progress[-1].tokens == prepared.manifest.train.tokens + prepared.manifest.validation.tokens


def test_a_special_token_in_a_text_is_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(f"before {END_OF_TEXT} after")
    run_prepare(source=str(path), path=str(tmp_path / "out"), validation_fraction=0.0)
    assert texts_of(tmp_path / "out", "train") == [f"before {END_OF_TEXT} after"]


def test_a_large_vocabulary_takes_four_bytes(tmp_path, corpus, tokenizer_file):
    raw = json.loads(tokenizer_file.read_text())
    raw["model"]["vocab"]["far"] = 70_000
    tokenizer_file.write_text(json.dumps(raw))
    settings = {"source": str(corpus), "tokenizer": str(tokenizer_file), "vocab_size": None}
    manifest = run_prepare(path=str(tmp_path / "out"), **settings).manifest
    assert (manifest.dtype, manifest.tokenizer.vocab_size) == ("uint32", 70_001)
    assert texts_of(tmp_path / "out", "train")[0] in documents(200)


def test_a_corpus_too_small_for_the_vocabulary_is_said(corpus, tmp_path):
    lines: list[str] = []
    found = run_prepare(source=str(corpus), path=str(tmp_path / "out"), vocab_size=9000, lines=lines)
    size = found.manifest.tokenizer.vocab_size
    assert 257 <= size < 9000
    assert f"tokenizer: the source yields {size:,} tokens, fewer than the 9,000 asked for" in lines


def test_bad_files_are_skipped_named_and_counted(corpus, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"caf\xe9")
    with corpus.open("a") as stream:
        stream.write("no json\n")
    prepared = run_prepare(source=[str(bad), str(corpus)], path=str(tmp_path / "out"))
    source = prepared.manifest.source
    assert source["skipped"] == 2
    assert [item["where"] for item in source["skipped_names"]] == [str(bad), f"{corpus}:201"]
    assert prepared.manifest.train.documents + prepared.manifest.validation.documents == 200


def test_bad_files_are_refused_where_asked_and_mending_them_goes_on(corpus, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"caf\xe9")
    settings = {
        "source": [str(bad), str(corpus)],
        "path": str(tmp_path / "out"),
        "on_bad": OnBad.error,
    }
    (problem,) = refused(**settings)
    assert problem == (
        f"{bad} is not UTF-8 (byte 0xe9 at 3), and data.on_bad=error; "
        "mend it, or leave such out with data.on_bad=skip"
    )
    assert not list((tmp_path / "out").glob("*.bin*"))
    bad.write_bytes("café".encode())
    assert run_prepare(**settings).manifest.source["skipped"] == 0


def test_other_data_in_the_folder_is_refused_and_kept(corpus, tmp_path):
    target = tmp_path / "out"
    run_prepare(source=str(corpus), path=str(target))
    before = everything_in(target)
    other = write_jsonl(tmp_path / "other.jsonl", documents(3))
    problems = refused(source=str(other), path=str(target), validation_fraction=0.5)
    assert problems[0] == (
        f"data.path={target} holds data prepared with data.source=['{corpus}'], now it is "
        f"data.source=['{other}']; choose another data.path, or remove that folder to prepare it anew"
    )
    assert any("data.validation_fraction=0.01, now it is data.validation_fraction=0.5" in p for p in problems)
    assert everything_in(target) == before


def test_a_source_that_changed_is_other_data(corpus, tmp_path):
    run_prepare(source=str(corpus), path=str(tmp_path / "out"))
    write_jsonl(corpus, documents(201))
    assert any("num_bytes=" in problem for problem in refused(source=str(corpus), path=str(tmp_path / "out")))


def test_prepared_data_that_was_damaged_is_not_called_done(corpus, tmp_path):
    run_prepare(source=str(corpus), path=str(tmp_path / "out"))
    (tmp_path / "out" / "train_00000.bin").write_bytes(b"xx")
    (problem,) = refused(source=str(corpus), path=str(tmp_path / "out"))
    assert "train_00000.bin has 2 bytes" in problem


def test_two_at_once_never_write_into_each_other_s_files(corpus, tmp_path):
    """Each shard is written beside its place under one name: the second to open it would cut off the first's."""
    target = tmp_path / "out"
    inside: list[str] = []

    def meanwhile(task, units):
        inside.extend(refused(source=str(corpus), path=str(target)))
        yield from map_in_process(task, units)

    assert run_prepare(source=str(corpus), path=str(target), map_tasks=meanwhile).is_new
    (problem,) = inside
    assert f"data.path={target} is being prepared already (pid {os.getpid()} on " in problem
    assert not (target / "prepare.lock").exists()
    verify_shards(str(target), read_manifest(str(target)))
    assert not run_prepare(source=str(corpus), path=str(target)).is_new


def test_a_lock_that_a_killed_prepare_left_is_nobody_s(corpus, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "prepare.lock").write_text("pid 1 on here\n")
    assert run_prepare(source=str(corpus), path=str(target)).is_new
    assert not (target / "prepare.lock").exists()


def test_no_space_left_keeps_what_is_done(tmp_path, tokenizer_file):
    """The second unit's shard is begun on /dev/full, which refuses every byte as a full disk does."""
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", documents(1, num_words=250_000))
    target = tmp_path / "out"
    target.mkdir()
    (target / "train_00001.bin.tmp").symlink_to("/dev/full")
    settings = {
        "source": f"{tmp_path}/*.jsonl",
        "path": str(target),
        "tokenizer": str(tokenizer_file),
        "vocab_size": None,
        "validation_fraction": 0.0,
    }
    (problem,) = refused(**settings)
    assert problem == (
        f"no space left while writing {target}/train_00001.bin; free some space and run the same command "
        "again: what is finished is kept"
    )
    first_shard = (target / "train_00000.bin").stat()
    lines: list[str] = []
    assert run_prepare(lines=lines, **settings).is_new
    assert "1 of 2 units were finished by the run that was interrupted" in lines
    assert (target / "train_00000.bin").stat().st_mtime_ns == first_shard.st_mtime_ns
    assert (target / "train_00000.bin").stat().st_ino == first_shard.st_ino


def test_a_target_that_can_not_be_a_folder_is_refused(corpus, tmp_path):
    (tmp_path / "file").write_text("mine")
    (problem,) = refused(source=str(corpus), path=str(tmp_path / "file" / "out"))
    assert os.strerror(errno.ENOTDIR) in problem
    assert (tmp_path / "file").read_text() == "mine"


def test_a_target_among_its_sources_is_refused(corpus, tmp_path):
    (problem,) = refused(source=str(corpus), path=str(tmp_path))
    assert "give the prepared data a folder of its own" in problem


def test_a_tokenizer_of_someone_else_is_not_overwritten(corpus, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "tokenizer.json").write_text("mine")
    (problem,) = refused(source=str(corpus), path=str(target))
    assert "has a tokenizer.json that prepare did not write" in problem
    assert (target / "tokenizer.json").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"caf\xe9"])
def test_an_empty_corpus_is_refused_and_leaves_nothing(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    (problem,) = refused(source=str(path), path=str(tmp_path / "out"))
    assert f"data.source={path} holds no text: 1 file, no document" in problem
    assert ("is not UTF-8" in problem) == bool(content)
    assert everything_in(tmp_path / "out") == {}


def test_a_wrong_text_field_is_named_with_those_that_are_there(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", documents(130))
    (problem,) = refused(source=str(path), path=str(tmp_path / "out"), text_field="body")
    assert f"the first of 130 that can't be read is {path}:1: has no field data.text_field=body" in problem
    assert "its fields: text, other" in problem


def test_a_validation_split_that_takes_everything_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(sentence(1))
    share = xxhash.xxh3_64(path.read_bytes()).intdigest() / 2**64
    (problem,) = refused(source=str(path), path=str(tmp_path / "out"), validation_fraction=(share + 1) / 2)
    assert "takes the only document and leaves none to train on" in problem


def test_all_wrong_settings_are_named_at_once():
    problems = refused(validation_fraction=1.0, tokenizer_sample_bytes=0, vocab_size=100)
    assert [problem.split(" ")[0].split("=")[0] for problem in problems] == [
        "data.path",
        "data.source",
        "data.validation_fraction",
        "data.tokenizer_sample_bytes",
        "data.vocab_size",
    ]


def test_a_tokenizer_that_does_not_fit_is_refused_before_anything_is_written(corpus, tmp_path, tokenizer_file):
    settings = {"source": str(corpus), "path": str(tmp_path / "out")}
    (problem,) = refused(tokenizer=str(tokenizer_file), vocab_size=999, **settings)
    assert problem.startswith("data.vocab_size=999 does not match data.tokenizer=")
    raw = json.loads(tokenizer_file.read_text().replace(END_OF_TEXT, "<|nothing|>"))
    tokenizer_file.write_text(json.dumps(raw))
    (problem,) = refused(tokenizer=str(tokenizer_file), vocab_size=None, **settings)
    assert "has no end-of-text token" in problem
    tokenizer_file.write_text("{}")
    (problem,) = refused(tokenizer=str(tokenizer_file), vocab_size=None, **settings)
    assert "is not a Hugging Face tokenizer.json" in problem
    (problem,) = refused(tokenizer=str(tmp_path / "none.json"), vocab_size=None, **settings)
    assert "can't be read" in problem
    assert not (tmp_path / "out").exists()
