"""Where text comes from: the files behind `data.source`, and how they are cut into units of work."""

import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import xxhash

from orchestrator.data import files
from orchestrator.errors import DataError

STANDARD_LIBRARY = "python:stdlib"
_COMPRESSIONS = (".gz", ".zst")
_MIN_UNIT_BYTES = 1 << 20
_MAX_UNIT_BYTES = 1 << 28
_UNITS_AIM = 64
"""Units a medium corpus is cut into: enough to keep many cores busy, few enough to be no burden as files."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of text as it was when it was listed."""

    url: str
    """Absolute path or fsspec URL."""
    bytes: int
    stamp: str
    """Changes when the content does: the entity tag or the time of the last change."""

    @property
    def format(self) -> str:
        """`jsonl`, `parquet` or `text`, by the suffix under any compression's."""
        suffix = Path(self.url.removesuffix(self.compression)).suffix.lower()
        return {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}.get(suffix, "text")

    @property
    def compression(self) -> str:
        """`.gz`, `.zst` or nothing."""
        return next((suffix for suffix in _COMPRESSIONS if self.url.endswith(suffix)), "")


@dataclass(frozen=True, slots=True)
class Piece:
    """A file, or a part: lines that start at bytes [start, end), or row groups [start, end)."""

    file: SourceFile
    start: int = 0
    end: int | None = None
    """None: to the end of the file."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What one task tokenizes and writes as one shard per split; cut by the files, never by the cluster."""

    index: int
    pieces: tuple[Piece, ...]
    bytes: int
    """As stored, so compressed where the files are."""


def list_sources(source: Any) -> list[SourceFile]:
    """Every file behind `data.source`, sorted and distinct. Raises DataError, for all patterns at once."""
    patterns = source_patterns(source)
    found: dict[str, SourceFile] = {}
    problems = []
    for pattern in patterns:
        try:
            matches = _match(pattern)
        except DataError as error:
            problems.append(f"data.source={error}")
            continue
        except OSError as error:
            problems.append(f"data.source={pattern} can't be listed: {error}")
            continue
        if not matches:
            problems.append(f"data.source={pattern} matches no file; check the path")
        found.update((file.url, file) for file in matches)
    if problems:
        raise DataError(*problems)
    return [found[url] for url in sorted(found)]


def source_patterns(source: Any) -> list[str]:
    """`data.source` as a list of what the person named. Raises DataError."""
    patterns = [source] if isinstance(source, str) else source
    if not isinstance(patterns, list) or not patterns or not all(isinstance(item, str) for item in patterns):
        raise DataError(
            f"data.source={source} must be a file, a glob, a URL or a list of them; "
            f"data.source={STANDARD_LIBRARY} takes the standard library of this Python"
        )
    return patterns


def sources_fingerprint(sources: Sequence[SourceFile]) -> str:
    """Changes when a file is added, removed or changed."""
    digest = xxhash.xxh3_128()
    for file in sources:
        digest.update(f"{file.url}\0{file.bytes}\0{file.stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def cut_units(sources: Sequence[SourceFile]) -> list[Unit]:
    """Cut the corpus into units of similar size: small files together, large splittable ones in parts.

    1,790 files of 31 MB make about 30 units; 10 TB make about 40,000 of 256 MiB.
    """
    total_bytes = sum(file.bytes for file in sources)
    unit_bytes = min(max(total_bytes // _UNITS_AIM, _MIN_UNIT_BYTES), _MAX_UNIT_BYTES)
    units: list[Unit] = []
    pieces: list[Piece] = []
    held_bytes = 0
    for file in sources:
        for piece, piece_bytes in _cut_file(file, unit_bytes):
            if pieces and held_bytes + piece_bytes > unit_bytes:
                units.append(Unit(len(units), tuple(pieces), held_bytes))
                pieces, held_bytes = [], 0
            pieces.append(piece)
            held_bytes += piece_bytes
    if pieces:
        units.append(Unit(len(units), tuple(pieces), held_bytes))
    return units


def _match(pattern: str) -> list[SourceFile]:
    if pattern == STANDARD_LIBRARY:
        return _standard_library()
    filesystem, path = files.open_filesystem(pattern)
    if filesystem.isdir(path):
        return _files_of(filesystem, filesystem.find(path, detail=True))
    if filesystem.exists(path):
        return _files_of(filesystem, {path: filesystem.info(path)})
    return _files_of(filesystem, filesystem.glob(path, detail=True))


def _standard_library() -> list[SourceFile]:
    folder = Path(sysconfig.get_path("stdlib"))
    paths = [
        path
        for path in folder.rglob("*.py")
        if not {"site-packages", "dist-packages"} & set(path.relative_to(folder).parts)
    ]
    infos = ((path, path.stat()) for path in paths)
    return [SourceFile(str(path), info.st_size, str(info.st_mtime_ns)) for path, info in infos]


def _files_of(filesystem: fsspec.AbstractFileSystem, infos: dict[str, dict[str, Any]]) -> list[SourceFile]:
    is_local = "file" in filesystem.protocol
    return [
        SourceFile(
            url=name if is_local else filesystem.unstrip_protocol(name),
            bytes=int(info.get("size") or 0),
            stamp=_stamp(info),
        )
        for name, info in infos.items()
        if info["type"] != "directory"
    ]


def _stamp(info: dict[str, Any]) -> str:
    """What each file system calls the version of a file: local, S3, GCS, Azure, HTTP, memory."""
    names = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "mtime_ns", "created")
    return next((str(info[name]) for name in names if info.get(name)), "")


def _cut_file(file: SourceFile, unit_bytes: int) -> Iterator[tuple[Piece, int]]:
    is_large = file.bytes >= 2 * unit_bytes and not file.compression
    if is_large and file.format == "jsonl":
        for start in range(0, file.bytes, unit_bytes):
            end = min(start + unit_bytes, file.bytes)
            yield Piece(file, start, end), end - start
    elif is_large and file.format == "parquet" and (sizes := _row_group_bytes(file)):
        for start, end in _group(sizes, unit_bytes):
            yield Piece(file, start, end), sum(sizes[start:end])
    else:
        yield Piece(file), file.bytes


def _row_group_bytes(file: SourceFile) -> list[int]:
    """Stored size of each row group; empty where the file can't be read, which its unit will say."""
    try:
        with files.open_binary(file.url) as stream:
            metadata = pyarrow.parquet.ParquetFile(stream).metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            return [sum(group.column(i).total_compressed_size for i in range(group.num_columns)) for group in groups]
    except (OSError, pyarrow.ArrowException):
        return []


def _group(sizes: list[int], unit_bytes: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of about `unit_bytes` each."""
    start, held_bytes = 0, 0
    for i, size in enumerate(sizes):
        if i > start and held_bytes + size > unit_bytes:
            yield start, i
            start, held_bytes = i, 0
        held_bytes += size
    yield start, len(sizes)
