"""Local paths and fsspec URLs as one thing. What is written appears whole or not at all."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec
import xxhash
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from orchestrator.errors import DataError

_CHUNK_BYTES = 1 << 22
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def open_filesystem(path_or_url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL and the path within it. Raises DataError for an unknown protocol."""
    try:
        return url_to_fs(str(path_or_url))
    except (ValueError, ImportError) as error:
        raise DataError(f"{path_or_url} can't be opened: {error}") from error


def local_path(path_or_url: str) -> Path | None:
    """The path of something on this machine's disks; None for a remote URL."""
    filesystem, path = open_filesystem(path_or_url)
    return Path(path) if isinstance(filesystem, LocalFileSystem) else None


def join(folder: str, *names: str) -> str:
    return "/".join((str(folder).rstrip("/") or "", *names))


def open_binary(path_or_url: str) -> IO[bytes]:
    path = local_path(path_or_url)
    if path is not None:
        return path.open("rb")
    filesystem, remote_path = open_filesystem(path_or_url)
    return filesystem.open(remote_path, "rb")


def file_bytes(path_or_url: str) -> int | None:
    """Size of a file; None where there is none."""
    filesystem, path = open_filesystem(path_or_url)
    try:
        return int(filesystem.size(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_bytes(path_or_url: str) -> bytes:
    with open_binary(path_or_url) as stream:
        return stream.read()


def file_xxh3_128(path_or_url: str, on_read: Callable[[int], None] | None = None) -> str:
    """The checksum in hexadecimal; `on_read` gets the bytes of each piece that was read."""
    digest = xxhash.xxh3_128()
    with open_binary(path_or_url) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            if on_read is not None:
                on_read(len(chunk))
    return digest.hexdigest()


def make_folder(path_or_url: str) -> None:
    filesystem, path = open_filesystem(path_or_url)
    with explained_write(path_or_url):
        filesystem.makedirs(path, exist_ok=True)


def list_names(folder: str) -> list[str]:
    """Names of what lies in a folder."""
    filesystem, path = open_filesystem(folder)
    return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in filesystem.ls(path, detail=False))


def remove_folder(path_or_url: str) -> None:
    filesystem, path = open_filesystem(path_or_url)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def remove_file(path_or_url: str) -> None:
    filesystem, path = open_filesystem(path_or_url)
    if filesystem.exists(path):
        filesystem.rm(path)


class AtomicFile:
    """A file that appears under its name at `commit`, complete and on disk, or never.

    Locally it is written as NAME.tmp beside its place; object stores show an object once it is closed.
    An interrupted writer leaves at most NAME.tmp, which the next one overwrites.
    """

    def __init__(self, path_or_url: str) -> None:
        self.url = path_or_url
        self._path = local_path(path_or_url)
        with explained_write(path_or_url):
            if self._path is not None:
                self._temporary = self._path.with_name(self._path.name + ".tmp")
                self._stream: Any = self._temporary.open("wb")
            else:
                filesystem, remote_path = open_filesystem(path_or_url)
                self._stream = filesystem.open(remote_path, "wb")

    def write(self, data: bytes | memoryview) -> None:
        with explained_write(self.url):
            self._stream.write(data)

    def commit(self) -> None:
        with explained_write(self.url):
            if self._path is None:
                self._stream.close()
                return
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._temporary.replace(self._path)
            _sync_folder(self._path.parent)

    def discard(self) -> None:
        """Drop what was written; does nothing after `commit`."""
        if self._path is None:
            if not self._stream.closed:
                self._stream.discard()
            return
        with suppress(OSError):  # a full disk can't take what is buffered, and it is being dropped anyway
            self._stream.close()
        self._temporary.unlink(missing_ok=True)


def write_atomically(path_or_url: str, data: bytes) -> None:
    file = AtomicFile(path_or_url)
    try:
        file.write(data)
        file.commit()
    except BaseException:
        file.discard()
        raise


@contextmanager
def explained_write(path_or_url: str) -> Iterator[None]:
    """Turn the system's refusal to write into a sentence. Raises DataError."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DataError(
                f"no space left while writing {path_or_url}; free some space and run the same command again: "
                "what is finished is kept"
            ) from error
        raise DataError(f"{path_or_url} can't be written: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
