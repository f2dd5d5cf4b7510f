"""What `data.source` names, and how it is cut."""

import sysconfig
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from prepared import documents, write_jsonl

from orchestrator.data.documents import Document, read_documents
from orchestrator.data.sources import SourceFile, cut_units, list_sources, sources_fingerprint
from orchestrator.errors import DataError


def text_file(name: str, size: int) -> SourceFile:
    return SourceFile(url=name, bytes=size, stamp="1")


def names(source) -> list[str]:
    return [Path(file.url).name for file in list_sources(source)]


def test_a_file_a_glob_a_folder_and_a_list_name_files(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "c.jsonl", "deep/d.txt"):
        (tmp_path / name).write_text("x")
    assert names(str(tmp_path / "a.txt")) == ["a.txt"]
    assert names(f"{tmp_path}/*.txt") == ["a.txt", "b.txt"]
    assert names(f"{tmp_path}/**/*.txt") == ["a.txt", "b.txt", "d.txt"]
    assert names(str(tmp_path)) == ["a.txt", "b.txt", "c.jsonl", "d.txt"]
    assert names([f"{tmp_path}/b*", f"{tmp_path}/*.txt"]) == ["a.txt", "b.txt"]


def test_a_name_with_glob_characters_is_a_file_where_one_is_called_so(tmp_path):
    (tmp_path / "odd[1].txt").write_text("x")
    (tmp_path / "odd1.txt").write_text("x")
    assert names(str(tmp_path / "odd[1].txt")) == ["odd[1].txt"]


def test_urls_keep_their_protocol():
    memory = fsspec.filesystem("memory")
    memory.pipe("/sources-test/a.txt", b"x")
    memory.pipe("/sources-test/b.txt", b"yy")
    files = list_sources("memory://sources-test/*.txt")
    assert [(file.url, file.bytes) for file in files] == [
        ("memory:///sources-test/a.txt", 1),
        ("memory:///sources-test/b.txt", 2),
    ]


def test_the_standard_library_is_a_source():
    files = list_sources("python:stdlib")
    folder = Path(sysconfig.get_path("stdlib"))
    found = {Path(file.url).relative_to(folder) for file in files}
    assert {Path("json/decoder.py"), Path("argparse.py")} <= found
    assert not any("site-packages" in path.parts for path in found)
    assert sum(file.bytes for file in files) > 20_000_000


def test_every_pattern_that_matches_nothing_is_named(tmp_path):
    with pytest.raises(DataError) as caught:
        list_sources([f"{tmp_path}/none", f"{tmp_path}/*.txt", "nosuch://x"])
    assert caught.value.problems == (
        f"data.source={tmp_path}/none matches no file; check the path",
        f"data.source={tmp_path}/*.txt matches no file; check the path",
        "data.source=nosuch://x can't be opened: Protocol not known: nosuch",
    )


@pytest.mark.parametrize("source", [None, 3, [], ["a", 3], {"a": 1}])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(DataError, match=r"data\.source=.* must be a file, a glob, a URL or a list"):
        list_sources(source)


def test_the_fingerprint_sees_every_change(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = sources_fingerprint(list_sources(str(path)))
    assert sources_fingerprint(list_sources(str(path))) == before
    path.write_text("three")
    assert sources_fingerprint(list_sources(str(path))) != before


@pytest.mark.parametrize(
    ("name", "format_name", "compression"),
    [
        ("a.txt", "text", ""),
        ("a.py", "text", ""),
        ("README", "text", ""),
        ("a.jsonl", "jsonl", ""),
        ("a.ndjson.gz", "jsonl", ".gz"),
        ("a.JSONL.zst", "jsonl", ".zst"),
        ("a.parquet", "parquet", ""),
        ("a.gz", "text", ".gz"),
    ],
)
def test_formats_go_by_suffix(name, format_name, compression):
    file = text_file(f"/x/{name}", 1)
    assert (file.format, file.compression) == (format_name, compression)


def test_small_files_share_a_unit_and_large_ones_have_their_own():
    files = [text_file(f"{i:04d}.txt", 10_000) for i in range(300)] + [text_file("z.txt", 5_000_000)]
    units = cut_units(files)
    assert [unit.index for unit in units] == list(range(len(units))) == [0, 1, 2, 3]
    assert [len(unit.pieces) for unit in units] == [104, 104, 92, 1]
    assert [piece.file for unit in units for piece in unit.pieces] == files


def test_a_huge_corpus_has_units_of_a_quarter_gigabyte():
    units = cut_units([text_file(f"{i:06d}.txt.gz", 2**26) for i in range(1000)])
    assert {unit.bytes for unit in units} == {2**28}


def texts_in(units, text_field="text") -> list[str]:
    items = [item for unit in units for piece in unit.pieces for item in read_documents(piece, text_field)]
    assert all(isinstance(item, Document) for item in items)
    return [item.text for item in items]


def test_large_jsonl_is_split_between_lines(tmp_path):
    texts = [f"{i} é " + "x" * (i * 37 % 2000) for i in range(4000)]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    units = cut_units(list_sources(str(path)))
    assert len(units) >= 3
    assert texts_in(units) == texts


def test_large_parquet_is_split_between_row_groups(tmp_path):
    texts = documents(6000, num_words=90)
    table = pyarrow.table({"body": texts, "number": list(range(6000))})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=500, compression="none", use_dictionary=False)
    assert path.stat().st_size > 2 * 2**20
    units = cut_units(list_sources(str(path)))
    assert len(units) >= 2
    assert texts_in(units, "body") == texts
