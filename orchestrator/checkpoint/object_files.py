"""A checkpoint store behind an fsspec URL (S3, GCS, Azure, ...). The only file here that imports fsspec."""

import errno
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from fsspec.core import url_to_fs

Buffer = bytes | memoryview

_PART_BYTES = 32 << 20
"""One part of a multipart upload: S3 takes 10,000 of them, so files of 320 GB, with one part in memory."""
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 30


class ObjectFiles:
    """Raises whatever the backend raises; `Store` translates. Objects appear whole, at the end."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = url_to_fs(url, **_options(url))

    def write_atomic(self, path: str, chunks: Iterable[Buffer]) -> None:
        """One put where it fits into a part, else a multipart upload that a failure ends without a trace."""
        head, rest = _first_part(iter(chunks))
        if rest is None:
            self._fs.pipe_file(self._full(path), head)
            return
        file = self._fs.open(self._full(path), "wb", block_size=_PART_BYTES)
        try:
            file.write(head)
            for chunk in rest:
                file.write(memoryview(chunk).cast("B"))
            file.close()
        except BaseException:
            # Neither now nor when it is collected may the file publish what was written so far.
            with suppress(Exception):
                file.discard()
            file.closed = True
            raise

    def create_exclusive(self, path: str, data: bytes) -> bool:
        """A conditional put where the backend has it, elsewhere a look before the put."""
        if self.size(path) is not None:
            return False
        try:
            self._fs.pipe_file(self._full(path), data, mode="create")
        except FileExistsError:
            return False
        except (NotImplementedError, TypeError):
            self._fs.pipe_file(self._full(path), data)
        except Exception:
            # Backends answer a lost race each in their own way (s3fs: OSError EINVAL); a put that was
            # retried after a lost answer finds its own object.
            if self.size(path) is None:
                raise
            return self.read(path) == data
        return True

    def refuses_second_put(self, path: str) -> bool:
        """Whether a conditional put over an existing object is refused. Overwrites `path`."""
        self._fs.pipe_file(self._full(path), b"first")
        try:
            self._fs.pipe_file(self._full(path), b"second", mode="create")
        except (NotImplementedError, TypeError):
            return False
        except Exception:
            return self.read(path) == b"first"
        return False

    def read(self, path: str) -> bytes:
        full = self._full(path)
        self._fs.invalidate_cache()
        num_bytes = int(self._fs.info(full)["size"] or 0)
        data = bytes(self._fs.cat_file(full)) if num_bytes else b""
        if len(data) < num_bytes:
            raise _partial(full, len(data), num_bytes)
        return data

    def open(self, path: str) -> None:
        """Nothing is kept open: each range is a request of its own."""

    def read_into(self, path: str, offset: int, out: memoryview, file: object = None) -> int:
        """Fill `out` from byte `offset` on; the number of bytes found, fewer only at the end of the object."""
        if not len(out):
            return 0
        full = self._full(path)
        try:
            data = self._fs.cat_file(full, start=offset, end=offset + len(out))
        except FileNotFoundError:
            raise
        except Exception:
            # S3 refuses a range that begins at the end.
            if (size := self.size(path)) is None or offset < size:
                raise
            return 0
        if len(data) < len(out):
            size = self.size(path) or 0
            expected = max(0, min(size - offset, len(out)))
            if len(data) < expected:
                raise _partial(full, len(data), expected)
        out[: len(data)] = data
        return len(data)

    def list(self, folder: str) -> list[str]:
        full = self._full(folder)
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(full, detail=False)
        except FileNotFoundError:
            return []
        # Some backends list the folder itself.
        paths = {path.rstrip("/") for path in found} - {full.rstrip("/")}
        return sorted(path.rpartition("/")[2] for path in paths)

    def size(self, path: str) -> int | None:
        self._fs.invalidate_cache()
        try:
            return int(self._fs.info(self._full(path))["size"] or 0)
        except FileNotFoundError:
            return None

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm(self._full(path), recursive=True)

    def free_bytes(self) -> int | None:
        return None

    def _full(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}" if path else self._root


def _options(url: str) -> dict[str, Any]:
    """Limits so that a store that is silent is found so in a minute, not in ten; what a person exported wins."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    limits = {"connect_timeout": _CONNECT_TIMEOUT_S, "read_timeout": _READ_TIMEOUT_S, "retries": {"max_attempts": 2}}
    return {"config_kwargs": limits}


def _first_part(chunks: Iterator[Buffer]) -> tuple[bytes, Iterator[Buffer] | None]:
    """(the first part's bytes, what follows it); None where nothing can follow: the chunks are at their end."""
    head = bytearray()
    for chunk in chunks:
        head += memoryview(chunk).cast("B")
        if len(head) >= _PART_BYTES:
            return bytes(head), chunks
    return bytes(head), None


def _partial(where: str, found: int, expected: int) -> OSError:
    return OSError(errno.EIO, f"{found:,} of {expected:,} bytes of {where} came")
