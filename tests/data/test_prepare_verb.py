"""The body of `phalanx prepare`: its units on a real Ray, and what it says."""

import os
import pty
import subprocess
import sys

import pytest
from prepared import documents, run_prepare, sentence, stream_of, write_jsonl, write_shards

from launch import cli
from launch.compose import compose
from launch.prepare import prepare, summary
from orchestrator.data.prepare import Prepared


@pytest.mark.real
def test_units_on_ray_make_what_one_process_makes(tmp_path, capfd):
    for name in "abc":
        write_jsonl(tmp_path / f"{name}.jsonl", documents(2, num_words=120_000))
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    source = [f"{tmp_path}/*.jsonl", f"{tmp_path}/*.txt"]
    overrides = [
        f"data.source=[{','.join(source)}]",
        f"data.path={tmp_path}/ray",
        "data.vocab_size=300",
        "data.validation_fraction=0",
    ]
    config = compose(overrides).config
    assert prepare(config) == 0
    said = capfd.readouterr().out
    assert "tokenizing: 100%" in said
    assert "skipped     1 that can't be read:" in said
    assert prepare(config) == 0
    assert "already prepared, nothing to do" in capfd.readouterr().out

    run_prepare(source=source, path=f"{tmp_path}/here", validation_fraction=0)
    assert stream_of(tmp_path / "ray", "train").tolist() == stream_of(tmp_path / "here", "train").tolist()


def test_the_summary_says_what_came_out_and_what_is_next(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", documents(100))
    with source.open("a") as stream:
        stream.write("broken\n" * 103)
    prepared = run_prepare(source=str(source), path=str(tmp_path / "out"), validation_fraction=0.3)
    manifest = prepared.manifest
    tokens = manifest.train.tokens + manifest.validation.tokens
    lines = summary("out", prepared)
    assert lines[0] == "data.path=out prepared"
    assert lines[1].startswith("  source      1 file, 100 documents, 0.02 MB of text")
    assert lines[2].startswith(f"  tokens      {tokens:,} in 2 shards of uint16, ")
    assert f"{manifest.validation.documents} documents" in lines[4]
    assert lines[5] == "  skipped     103 that can't be read:"
    assert lines[6].startswith(f"    {source}:101: is not JSON")
    assert lines[15].startswith(f"    {source}:110: is not JSON")
    assert lines[16:] == ["    and 93 more; manifest.json names more of them", "next: phalanx train data.path=out"]
    assert summary("out", Prepared(manifest, is_new=False))[0] == ("data.path=out already prepared, nothing to do")


def test_the_summary_says_where_nothing_is_left_to_evaluate_on(tmp_path):
    (tmp_path / "a.txt").write_text(sentence(1))
    prepared = run_prepare(source=str(tmp_path / "a.txt"), path=str(tmp_path / "out"), validation_fraction=1e-9)
    (note,) = [line for line in summary("out", prepared) if line.startswith("  note")]
    assert "data.validation_fraction=1e-09 of 1 document is none" in note
    assert "a text file is one" in note
    prepared = run_prepare(source=str(tmp_path / "a.txt"), path=str(tmp_path / "not"), validation_fraction=0)
    assert not [line for line in summary("out", prepared) if line.startswith("  note")]


def test_lines_are_printed_as_they_are(tmp_path, capfd):
    """`a.jsonl:100: has no field` once came out as `a.jsonl💯 has no field`."""
    source = tmp_path / "[red]a.jsonl"
    source.write_text('{"text": "words"}\n' * 99 + '{"body": "more"}\n')
    target = str(tmp_path / "out")
    run_prepare(source=str(source), path=target, validation_fraction=0)
    overrides = [f"data.source='{source}'", f"data.path={target}", "data.vocab_size=300"]
    assert prepare(compose([*overrides, "data.validation_fraction=0"]).config) == 0
    said = capfd.readouterr().out
    assert "already prepared" in said
    assert f"{source}:100: has no field data.text_field=text; its fields: body" in said


def test_verify_reads_what_is_prepared(tmp_path, capfd):
    write_shards(tmp_path, [1000, 2000])
    assert cli.main(["prepare", "--verify", f"data.path={tmp_path}"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        "verifying: 30%, 2,000 B of 0.01 MB",
        "verifying: 100%, 0.01 MB of 0.01 MB",
        f"data.path={tmp_path} verified: 2 shards and the tokenizer are what the manifest says",
        f"next: phalanx train data.path={tmp_path}",
    ]


def test_verify_names_what_is_damaged_and_leaves_it(tmp_path, capfd):
    write_shards(tmp_path, [1000, 2000])
    (tmp_path / "train_00001.bin").write_bytes(b"x" * 4000)
    assert cli.main(["prepare", "--verify", f"data.path={tmp_path}"]) == 2
    told = capfd.readouterr()
    assert "verified" not in told.out
    (problem,) = told.err.splitlines()
    assert problem.startswith(
        f"data.path={tmp_path}: {tmp_path}/train_00001.bin is damaged or another file: its xxh3"
    )
    assert problem.endswith("; restore the files or prepare the data again in another folder")
    assert (tmp_path / "train_00001.bin").read_bytes() == b"x" * 4000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.path=nowhere"], "data.path=nowhere has no manifest.json; run: phalanx prepare data.source=..."),
        ([], "data.path is not set; name the prepared data: phalanx prepare --verify data.path=prepared/mine"),
    ],
)
def test_verify_needs_something_prepared(tmp_path, monkeypatch, capfd, words, said):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["prepare", "--verify", *words]) == 2
    assert capfd.readouterr().err.startswith(said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("terminal", "said"), [("xterm", "━"), ("dumb", "verifying: 100%")])
def test_a_bar_on_a_terminal(tmp_path, terminal, said):
    write_shards(tmp_path, [1000, 2000])
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TTY_")}
    command = [sys.executable, "-m", "launch.cli", "prepare", "--verify", f"data.path={tmp_path}"]
    try:
        subprocess.run(command, env=environment | {"TERM": terminal}, stdout=theirs, check=True)
        shown = os.read(ours, 4096).decode(errors="replace")  # less than what a terminal holds back unread
    finally:
        os.close(theirs)
        os.close(ours)
    assert said in shown
    assert "verifying" in shown
