"""Where checkpoints lie: a local folder or any fsspec URL, behind few calls. Failures become one sentence."""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import NoReturn, Protocol
from urllib.parse import urlsplit, urlunsplit

from orchestrator.checkpoint.faults import fault_of, sentence
from orchestrator.checkpoint.local_files import Buffer, LocalFiles
from orchestrator.errors import CheckpointError, StoreError, StoreFault

CHUNK_BYTES = 8 << 20
"""What streaming reads and writes hold in memory at a time."""


class Files(Protocol):
    """What holds a store's files. Raises whatever it raises; `Store` translates."""

    def write_atomic(self, path: str, chunks: Iterable[Buffer]) -> None: ...
    def create_exclusive(self, path: str, data: bytes) -> bool: ...
    def refuses_second_put(self, path: str) -> bool: ...
    def read(self, path: str) -> bytes: ...
    def open(self, path: str) -> FileIO | None: ...
    def read_into(self, path: str, offset: int, out: memoryview, file: FileIO | None = None) -> int: ...
    def list(self, folder: str) -> "list[str]": ...
    def size(self, path: str) -> int | None: ...
    def remove(self, path: str) -> None: ...
    def free_bytes(self) -> int | None: ...


class Store:
    """A folder of checkpoints. Paths are relative to it, with `/`; everything raises StoreError.

    A file that is not there is None or an empty list for `size` and `list`, an error for the others.
    """

    def __init__(self, url: str | Path, is_private: bool = False, files: "Files | None" = None) -> None:
        """`is_private`: what is written to a local folder is for its owner only (0600). `files`: what else than the
        folder or object store at `url` holds them."""
        text = str(url)
        self._is_private = is_private
        scheme, separator, rest = text.partition("://")
        self.url = text.rstrip("/") if text.strip("/") else text
        self.is_local = not separator or scheme in {"file", "local"}
        if files is not None:
            self._files: Files = files
        elif not self.is_local:
            with self._translated("open", ""):
                # Imported only for URLs: a local store needs no fsspec.
                from orchestrator.checkpoint.object_files import ObjectFiles

                self._files = ObjectFiles(self.url)
        else:
            self._files = LocalFiles(Path(rest if separator else text).expanduser(), 0o600 if is_private else 0o666)
            self.url = str(self._files.root)

    def __reduce__(self) -> tuple[type["Store"], tuple[str, bool]]:
        return Store, (self.url, self._is_private)

    def __repr__(self) -> str:
        return f"Store({self.where('')!r})"

    def url_of(self, path: str) -> str:
        """The whole URL of `path`, to open it by; for people there is `where`."""
        return f"{self.url.rstrip('/')}/{path}" if path else self.url

    def where(self, path: str) -> str:
        """The whole URL of `path` for people: without a password or key in it."""
        full = self.url_of(path)
        if self.is_local or "@" not in full:
            return full
        parts = urlsplit(full)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def write_atomic(self, path: str, chunks: Iterable[Buffer], num_bytes: int | None = None) -> None:
        """Write `chunks` so that `path` is there whole and durably, or not at all; replaces what was there.

        `num_bytes`, where known, goes into the message when space runs out.
        """
        source = _Source(chunks)
        with self._translated("write", path, num_bytes, source):
            self._files.write_atomic(path, source)

    def create_exclusive(self, path: str, data: bytes) -> bool:
        """Write `path` only where it does not exist; False if it does. Of several callers one gets True."""
        with self._translated("write", path, len(data)):
            return self._files.create_exclusive(path, data)

    def claims_exclusively(self) -> bool:
        """Whether `create_exclusive` really refuses a second writer, tried on a file of its own.

        Some object stores ignore the condition; two live copies of a run could then both commit.
        """
        probe = f".exclusive.{secrets.token_hex(4)}.tmp"
        with self._translated("write", probe):
            try:
                return self._files.refuses_second_put(probe)
            finally:
                self._files.remove(probe)

    def read(self, path: str) -> bytes:
        with self._translated("read", path):
            return self._files.read(path)

    def open(self, path: str) -> FileIO | None:
        """Hand it to `read_range` to look a file up once for many ranges; None where nothing can be kept open."""
        with self._translated("read", path):
            return self._files.open(path)

    def read_range(
        self,
        path: str,
        offset: int,
        count: int,
        out: memoryview | None = None,
        file: FileIO | None = None,
    ) -> memoryview:
        """Bytes [offset, offset + count) of a file, into `out` where given. CheckpointError if shorter."""
        target = memoryview(bytearray(count)) if out is None else out.cast("B")
        if len(target) != count:
            raise ValueError(f"out holds {len(target)} bytes, {count} were asked for")
        with self._translated("read", path):
            found = self._files.read_into(path, offset, target, file)
        if found < count:
            raise CheckpointError(
                f"{self.where(path)} is damaged: it ends at byte {offset + found}, {offset + count} bytes are needed"
            )
        return target

    def read_chunks(self, path: str, chunk_bytes: int = CHUNK_BYTES) -> Iterator[memoryview]:
        """The whole file in order; each chunk is valid until the next one is asked for."""
        buffer = memoryview(bytearray(chunk_bytes))
        offset = 0
        while True:
            with self._translated("read", path):
                found = self._files.read_into(path, offset, buffer)
            if found:
                yield buffer[:found]
            offset += found
            if found < chunk_bytes:
                return

    def list(self, folder: str = "") -> list[str]:
        """Names in a folder, sorted; empty where there is no such folder."""
        with self._translated("list", folder):
            return self._files.list(folder)

    def size(self, path: str) -> int | None:
        """Bytes of a file, None where there is none."""
        try:  # asked of every file at every commit: a context costs more than the question
            return self._files.size(path)
        except Exception as error:
            self._raise_translated(error, "look at", path)

    def exists(self, path: str) -> bool:
        return self.size(path) is not None

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all in it; nothing happens where there is none."""
        with self._translated("remove", path):
            self._files.remove(path)

    @contextmanager
    def _translated(
        self, verb: str, path: str, num_bytes: int | None = None, source: "_Source | None" = None
    ) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if source and source.failure is error:
                raise
            self._raise_translated(error, verb, path, num_bytes)

    def _raise_translated(self, error: Exception, verb: str, path: str, num_bytes: int | None = None) -> NoReturn:
        if isinstance(error, CheckpointError):
            raise error
        fault = fault_of(error)
        free_bytes = self._free_bytes() if fault is StoreFault.full else None
        text = sentence(verb, self.where(path), error, num_bytes=num_bytes, free_bytes=free_bytes)
        raise StoreError(text, fault) from error

    def _free_bytes(self) -> int | None:
        try:
            return self._files.free_bytes()
        except OSError:
            return None


class _Source:
    """The chunks of a write, remembering a failure of their own: that is not the store's."""

    def __init__(self, chunks: Iterable[Buffer]) -> None:
        self._chunks = chunks
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[Buffer]:
        try:
            yield from self._chunks
        except BaseException as error:
            self.failure = error
            raise
