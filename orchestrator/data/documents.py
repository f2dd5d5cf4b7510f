"""Documents of source files: text, jsonl and parquet, plain or compressed; what can't be read is named."""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from orchestrator.data import files
from orchestrator.data.sources import Piece

_UNREADABLE = (OSError, EOFError, UnicodeDecodeError, zlib.error, pyarrow.ArrowException)
_CHUNK_BYTES = 1 << 20
_MAX_NAMED_FIELDS = 12


@dataclass(frozen=True, slots=True)
class Document:
    text: str
    utf8: bytes
    """The text in UTF-8, never empty."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, or one document of a file, that can't be read."""

    where: str
    """The file's name; `name:17` for a line, `name row 17` for a row of parquet (from 1)."""
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def read_documents(piece: Piece, text_field: str) -> Iterator[Document | Skipped]:
    """The documents of a file or of a part of one, in order. Empty ones are left out."""
    readers = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}
    try:
        for item in readers[piece.file.format](piece, text_field):
            if isinstance(item, Skipped) or item.utf8:
                yield item
    except _UNREADABLE as error:
        yield Skipped(piece.file.url, _reason(error))


def _document(text: Any, name: str) -> Document | str:
    """A document, or what is wrong with what a field or column `name` holds."""
    if not isinstance(text, str):
        return f"{name} is {type(text).__name__}, not text"
    try:
        return Document(text, text.encode())
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair
        return f"holds a character that UTF-8 can't ({text[error.start]!r})"


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start:,})"
    if isinstance(error, OSError) and error.strerror:
        return f"can't be read: {error.strerror}"
    return f"can't be read: {error}"


@contextmanager
def _open(piece: Piece) -> Iterator[IO[bytes]]:
    with files.open_binary(piece.file.url) as stream:
        if piece.file.compression == ".gz":
            with gzip.open(stream) as unpacked:
                yield unpacked
        elif piece.file.compression == ".zst":
            # zstandard's own stream reader takes a file that is cut off for its end; Arrow's does not.
            with pyarrow.CompressedInputStream(stream, "zstd") as unpacked:
                yield io.BufferedReader(unpacked, _CHUNK_BYTES)
        else:
            yield stream


def _read_text(piece: Piece, _text_field: str) -> Iterator[Document]:
    with _open(piece) as stream:
        utf8 = stream.read()
    yield Document(utf8.decode(), utf8)


def _read_jsonl(piece: Piece, text_field: str) -> Iterator[Document | Skipped]:
    lines_before: int | None = None
    with _open(piece) as stream:
        for number, line in enumerate(_lines(stream, piece.start, piece.end), start=1):
            if not line.strip():
                continue
            document = _document_of_line(line, text_field)
            if isinstance(document, Document):
                yield document
                continue
            if lines_before is None:
                lines_before = _count_lines(piece)
            yield Skipped(f"{piece.file.url}:{lines_before + number}", document)


def _lines(stream: IO[bytes], start: int, end: int | None) -> Iterator[bytes]:
    """Lines whose first byte lies in [start, end), each as a whole."""
    position = 0
    if start:
        stream.seek(start - 1)
        position = start - 1 + len(stream.readline())
    while end is None or position < end:
        line = stream.readline()
        if not line:
            return
        position += len(line)
        yield line


def _count_lines(piece: Piece) -> int:
    """Lines that start before the piece does: only a bad line makes us look."""
    if not piece.start:
        return 0
    with files.open_binary(piece.file.url) as stream:
        return sum(1 for _ in _lines(stream, 0, piece.start))


def _document_of_line(line: bytes, text_field: str) -> Document | str:
    """A document, or what is wrong with the line."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _reason(error)
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({error})"
    if not isinstance(value, dict):
        return f"is not a JSON object, so it has no field data.text_field={text_field}"
    if text_field not in value:
        return f"has no field data.text_field={text_field}; its fields: {_listed(value)}"
    return _document(value[text_field], f"field {text_field}")


def _listed(names: Iterable[str]) -> str:
    """The first of them; there may be thousands."""
    found = list(names)
    return ", ".join(found[:_MAX_NAMED_FIELDS]) + (", ..." if len(found) > _MAX_NAMED_FIELDS else "")


def _read_parquet(piece: Piece, text_field: str) -> Iterator[Document | Skipped]:
    url = piece.file.url
    with _open(piece) as stream:
        # The footer is read first, and only a plain file can be sought in.
        file = pyarrow.parquet.ParquetFile(io.BytesIO(stream.read()) if piece.file.compression else stream)
        if text_field not in file.schema_arrow.names:
            columns = _listed(file.schema_arrow.names)
            yield Skipped(url, f"has no column data.text_field={text_field}; its columns: {columns}")
            return
        end = file.num_row_groups if piece.end is None else piece.end
        row = sum(file.metadata.row_group(i).num_rows for i in range(piece.start))
        groups = list(range(piece.start, end))
        for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=[text_field]):
            for text in batch.column(0).to_pylist():
                row += 1
                document = _document(text, f"column {text_field}")
                yield document if isinstance(document, Document) else Skipped(f"{url} row {row}", document)
