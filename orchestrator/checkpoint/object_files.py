"""A checkpoint store behind an fsspec URL (S3, GCS, Azure, ...). The only file here that imports fsspec."""

from collections.abc import Iterable
from contextlib import suppress

from fsspec.core import url_to_fs

Buffer = bytes | memoryview

_PART_BYTES = 32 << 20
"""One part of a multipart upload: S3 takes 10,000 of them, so files of 320 GB, with one part in memory."""


class ObjectFiles:
    """Raises whatever the backend raises; `Store` translates. Objects appear whole, at the end."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = url_to_fs(url)

    def write_atomic(self, path: str, chunks: Iterable[Buffer]) -> None:
        full = self._full(path)
        file = self._fs.open(full, "wb", block_size=_PART_BYTES)
        try:
            for chunk in chunks:
                file.write(memoryview(chunk).cast("B"))
        except BaseException:
            # Closing is the only way to free a backend's buffers, and it publishes what was written so far.
            with suppress(Exception):
                file.close()
            with suppress(Exception):
                self._fs.rm_file(full)
            raise
        file.close()

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
        return bytes(self._fs.cat_file(self._full(path)))

    def read_into(self, path: str, offset: int, out: memoryview) -> int:
        if not len(out):
            return 0
        data = self._fs.cat_file(self._full(path), start=offset, end=offset + len(out))
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
