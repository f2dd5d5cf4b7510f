"""Append-only files of one JSON object a line that survive `kill -9`: the ledger and the metrics are such."""

import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOT_FINITE = "not_finite"
"""Field added where values (null then) were NaN or infinite: {dotted key: "nan" | "inf" | "-inf"}."""


class JsonLines:
    """Appends objects to `path`, each in one write, so that readers never see two lines mixed.

    A line that a dead writer left unfinished is closed with a newline before the first append: it is lost,
    and nothing else is. A line that a living writer is in the middle of looks the same (the kernel grows a file
    page by page), so opening beside one may leave an empty line, which readers pass over: a lock would keep it
    away, but could be held by a stopped process.
    Errors: OSError that names the file (no space left, ...); the next append then starts on its own line.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._torn = _ends_unfinished(self._fd)

    def append(self, record: dict[str, Any]) -> None:
        line = (encode(record) + "\n").encode()
        if self._torn:
            line = b"\n" + line
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            error.filename = str(self._path)
            raise
        self._torn = written != len(line)
        if self._torn:  # what the file had room for
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def sync(self) -> None:
        """Returns when every line appended so far is on disk. Errors: OSError that names the file."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            error.filename = str(self._path)
            raise

    def close(self) -> None:
        """Closing twice is harmless; appending afterwards is an error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def encode(record: dict[str, Any]) -> str:
    """One line of strict JSON; NaN and infinities, which JSON lacks, become null, named in `not_finite`."""
    odd: dict[str, str] = {}
    finite = _without_odd(record, "", odd)
    if odd:
        finite[NOT_FINITE] = odd
    return json.dumps(finite, allow_nan=False, separators=(", ", ": "))


def _without_odd(value: Any, key: str, odd: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        odd[key] = str(float(value))
        return None
    prefix = f"{key}." if key else ""
    if isinstance(value, dict):
        return {name: _without_odd(inner, f"{prefix}{name}", odd) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_odd(inner, f"{prefix}{index}", odd) for index, inner in enumerate(value)]
    return value


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of `path`, oldest first; torn lines are left out, a missing file has none."""
    try:
        with path.open("rb") as lines:
            for line in lines:
                yield from _record(line)
    except FileNotFoundError:
        return


def read_last_records(path: Path, max_bytes: int) -> list[dict[str, Any]]:
    """The records in the last `max_bytes` bytes, oldest first: constant time however long the file is."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - max_bytes)
            file.seek(start)
            if start:
                file.readline()
            return [record for line in file for record in _record(line)]
    except FileNotFoundError:
        return []


def _record(line: bytes) -> Iterator[dict[str, Any]]:
    try:
        record = json.loads(line)
    except ValueError:
        return
    if isinstance(record, dict):  # no beginning of an object is one: what lacks only its newline is whole
        yield record


def _ends_unfinished(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
