"""The body of `phalanx prepare`: its units on a real Ray, and what it says."""

import pytest
from prepared import documents, run_prepare, sentence, stream_of, write_jsonl

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
