"""Re-reads a checkpoint: every byte of its files, their headers, the marker; and its digest."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import xxhash

from orchestrator.checkpoint.layout import BYTES_PER_ELEMENT, KINDS, Extent, MarkerFile, step_folder
from orchestrator.checkpoint.marker import Marker, coverage_problems
from orchestrator.checkpoint.payload import HEADER_LENGTH_BYTES, SMALL_PREFIX, parse_header
from orchestrator.checkpoint.reader import CheckpointReader, read_marker
from orchestrator.checkpoint.store import CHUNK_BYTES, Store
from orchestrator.errors import CheckpointError, StoreError

Header = dict[str, tuple[str, tuple[int, ...], int, int]]
"""key -> (dtype, shape, byte offset in the file, bytes)."""
_MAX_PROBLEMS_PER_FILE = 5
READERS = 4
"""Files verified beside each other: reading and hashing release the interpreter, a remote store is slow to answer."""


def verify(store: Store, step: int, marker: Marker | None = None) -> list[str]:
    """All that is wrong with a checkpoint, one sentence each; empty: every byte is what was committed. `marker` where
    it has been read just now.

    Reads everything once, `READERS` files at a time, 8 MiB of each. Raises StoreError where the store itself does
    not answer. Needs no key: of an encrypted checkpoint the stored bytes are checked, which the headers are part of.
    """
    try:
        marker = marker or read_marker(store, step)
    except StoreError:
        raise
    except CheckpointError as error:
        return [str(error)]
    return coverage_problems(marker) + _problems_of_files(store, step, marker)


def _problems_of_files(store: Store, step: int, marker: Marker) -> list[str]:
    """In the files' order."""
    expected: dict[str, Header | None] = dict(expected_headers(marker)) if marker.encryption is None else {}
    waiting = deque(enumerate(marker.files))
    found: dict[int, list[str]] = {}

    def read_on() -> None:
        while waiting:
            try:
                index, file = waiting.popleft()
            except IndexError:  # another has taken the last one
                return
            try:
                found[index] = file_problems(store, step, file, expected.get(file.file))
            except BaseException:
                waiting.clear()  # where one can't be read, the others need not be
                raise

    with ThreadPoolExecutor(READERS, thread_name_prefix="verify") as readers:
        for reader in [readers.submit(read_on) for _ in range(READERS)]:
            reader.result()
    return [problem for index in sorted(found) for problem in found[index]]


def size_problem(store: Store, step: int, file: MarkerFile) -> str | None:
    """The cheap half of `file_problems`: whether a file is there with its size."""
    path = f"{step_folder(step)}/{file.file}"
    size = store.size(path)
    if size is None:
        return f"{store.where(path)} is missing"
    if size != file.bytes:
        return f"{store.where(path)} has {size:,} bytes, {file.bytes:,} were committed"
    return None


def file_problems(store: Store, step: int, file: MarkerFile, expected: Header | None) -> list[str]:
    """What is wrong with one file: its size, the checksum over every byte, its header against the marker.

    `expected=None` leaves the header out: it can't be read without a key.
    """
    problem = size_problem(store, step, file)
    if problem:
        return [problem]
    path = f"{step_folder(step)}/{file.file}"
    digest = xxhash.xxh3_128()
    for chunk in store.read_chunks(path, min(CHUNK_BYTES, file.bytes + 1)):
        digest.update(chunk)
    if digest.hexdigest() != file.xxh3_128:
        return [
            f"{store.where(path)} is damaged: its checksum is {digest.hexdigest()}, {file.xxh3_128} was committed"
        ]
    if expected is None:
        return []
    try:
        found = _read_header(store, path, file.bytes)
    except StoreError:
        raise
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{store.where(path)} has no readable safetensors header ({error})"]
    differences = _header_differences(found, expected)
    return [f"{store.where(path)}: {text}" for text in differences[:_MAX_PROBLEMS_PER_FILE]]


def expected_headers(marker: Marker) -> dict[str, Header]:
    """What each file's header must say, by file."""
    expected: dict[str, Header] = {}
    for file in marker.files:
        expected[file.file] = {
            SMALL_PREFIX + key: (entry.dtype, entry.shape, entry.offset, entry.bytes)
            for key, entry in file.small.items()
        }
    for name, tensor in marker.tensors.items():
        for kind, pieces in tensor.kinds.items():
            for piece in pieces:
                key = Extent(name, kind, tensor.shape, piece.start, piece.count).key
                num_bytes = piece.count * BYTES_PER_ELEMENT
                header = expected.setdefault(piece.file, {})
                header[key] = ("F32", (piece.count,), piece.offset, num_bytes)
    return expected


def logical_digest(reader: CheckpointReader) -> str:
    """32 hexadecimal digits, equal for equal states whatever the world size and ZeRO stage.

    xxh3_128 over the logical tensors in sorted name order: the name in UTF-8, then fp32 master, first and
    second moment (those it has), unpadded, little-endian.
    """
    digest = xxhash.xxh3_128()
    chunk = np.empty(CHUNK_BYTES // BYTES_PER_ELEMENT, "<f4")
    for name in sorted(reader.shapes):
        digest.update(name.encode())
        numel = reader.numel(name)
        for kind in (kind for kind in KINDS if kind in reader.kinds(name)):
            for start in range(0, numel, len(chunk)):
                count = min(len(chunk), numel - start)
                digest.update(reader.read(name, kind, start, count, out=chunk[:count]))
    return digest.hexdigest()


def _read_header(store: Store, path: str, file_bytes: int) -> Header:
    length = int.from_bytes(store.read_range(path, 0, HEADER_LENGTH_BYTES), "little")
    if length > file_bytes - HEADER_LENGTH_BYTES:
        raise ValueError(f"it claims {length:,} bytes")
    return parse_header(store.read_range(path, HEADER_LENGTH_BYTES, length), path)


def _header_differences(found: Header, expected: Header) -> list[str]:
    missing = [f"the header lacks {key}, which the marker names" for key in sorted(expected.keys() - found)]
    unknown = [f"the header has {key}, which the marker does not name" for key in sorted(found.keys() - expected)]
    differing = [
        f"the header says {found[key]} for {key}, the marker {expected[key]}"
        for key in sorted(found.keys() & expected)
        if found[key] != expected[key]
    ]
    return missing + unknown + differing
