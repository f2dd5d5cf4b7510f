"""Every format, and every way a file can be bad: it is named with what is wrong."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from orchestrator.data.documents import Document, Skipped, read_documents
from orchestrator.data.sources import Piece, SourceFile


def read(path, text_field="text", start=0, end=None) -> list[Document | Skipped]:
    size = path.stat().st_size if path.exists() else 0
    return list(read_documents(Piece(SourceFile(str(path), size, ""), start, end), text_field))


def texts(items: list[Document | Skipped]) -> list[str]:
    return [item.text for item in items if isinstance(item, Document)]


def reasons(path, **options) -> list[str]:
    return [str(item).removeprefix(str(path)) for item in read(path, **options) if isinstance(item, Skipped)]


COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_text_file_is_one_document(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix]("zwei Zeilen\nmit Ümläut\n".encode()))
    assert read(path) == [Document("zwei Zeilen\nmit Ümläut\n", "zwei Zeilen\nmit Ümläut\n".encode())]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_jsonl_is_a_document_a_line(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    lines = b"".join(json.dumps({"body": text, "id": 1}).encode() + b"\n" for text in ("one", "two\nlines", "3"))
    path.write_bytes(COMPRESS[suffix](lines))
    assert texts(read(path, text_field="body")) == ["one", "two\nlines", "3"]


def test_frames_and_members_that_follow_each_other_are_all_read(tmp_path):
    for suffix in (".gz", ".zst"):
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(COMPRESS[suffix](b'{"text": "one"}\n') + COMPRESS[suffix](b'{"text": "two"}\n'))
        assert texts(read(path)) == ["one", "two"]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_parquet_is_a_document_a_row(tmp_path, suffix):
    plain = tmp_path / "plain.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "", "three"], "n": [1, 2, 3]}), plain)
    path = tmp_path / f"a.parquet{suffix}"
    path.write_bytes(COMPRESS[suffix](plain.read_bytes()))
    assert texts(read(path)) == ["one", "three"]


def test_empty_documents_are_no_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"")
    assert read(path) == []
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": ""}\n\n   \n{"text": "x"}')
    assert texts(read(lines)) == ["x"]


def test_a_file_that_is_not_utf8_is_named_with_the_byte(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    assert reasons(path) == [": is not UTF-8 (byte 0xe9 at 3)"]


def test_a_file_that_went_away_is_named(tmp_path):
    assert reasons(tmp_path / "gone.txt") == [": can't be read: No such file or directory"]


def test_bad_lines_are_named_by_number_and_good_ones_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "good"}\n'
        b"not json\n"
        b'{"other": 1}\n'
        b'{"text": 5}\n'
        b"\n"
        b'{"text": "caf\xe9"}\n'
        b'["text"]\n'
        b'{"text": "\\ud800"}\n'
        b'{"text": "last"}'
    )
    assert texts(read(path)) == ["good", "last"]
    found = reasons(path)
    assert found[0].startswith(":2: is not JSON")
    assert found[1:5] == [
        ":3: has no field data.text_field=text; its fields: other",
        ":4: field text is int, not text",
        ":6: is not UTF-8 (byte 0xe9 at 13)",
        ":7: is not a JSON object, so it has no field data.text_field=text",
    ]
    assert found[5:] == [":8: holds a character that UTF-8 can't ('\\ud800')"]


def test_a_part_of_a_file_names_lines_of_the_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [b'{"text": "%d"}\n' % i for i in range(10)]
    lines[7] = b"broken\n"
    path.write_bytes(b"".join(lines))
    middle = len(b"".join(lines[:5])) + 3
    assert texts(read(path, end=middle)) == ["0", "1", "2", "3", "4", "5"]
    assert texts(read(path, start=middle)) == ["6", "8", "9"]
    assert reasons(path, start=middle)[0].startswith(":8: is not JSON")


def test_every_cut_gives_each_line_once(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{"text": "bb"}\n{"text": "c"}')
    for cut in range(1, path.stat().st_size):
        assert texts(read(path, end=cut)) + texts(read(path, start=cut)) == ["a", "bb", "c"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.parquet", "a.parquet.gz"])
def test_a_file_that_is_not_what_its_suffix_says_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"plain words, no magic number, long enough to be looked at")
    (reason,) = reasons(path)
    assert reason.startswith(": can't be read: ")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_that_is_cut_off_is_named(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    data = COMPRESS[suffix](bytes(range(97, 123)) * 50 + b"the end")
    path.write_bytes(data[: len(data) // 2])
    assert len(reasons(path)) == 1


def test_parquet_says_which_columns_there_are_and_which_rows_are_bad(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"body": ["one", None, "three"], "n": [1, 2, 3]})
    pyarrow.parquet.write_table(table, path, row_group_size=1)
    assert reasons(path) == [": has no column data.text_field=text; its columns: body, n"]
    assert reasons(path, text_field="body") == [" row 2: column body is NoneType, not text"]
    assert reasons(path, text_field="body", start=1, end=2) == [" row 2: column body is NoneType, not text"]
    assert texts(read(path, text_field="body", start=1)) == ["three"]
