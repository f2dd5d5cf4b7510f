"""A checkpoint store in memory, as reliable as told: it is full, does not answer, or tears what was written."""

import errno
from collections.abc import Callable, Iterable, Sequence
from io import FileIO

from orchestrator.checkpoint.local_files import Buffer
from orchestrator.errors import StoreFault

_ERRNO = {StoreFault.full: errno.ENOSPC, StoreFault.busy: errno.EIO, StoreFault.denied: errno.EACCES}


class MemoryFiles:
    """Files in folders one deep. Writes are whole or nothing, as the real ones are after their rename."""

    def __init__(self, on_put: Callable[[str, bytes], None]) -> None:
        """`on_put(path, data)` sees every write."""
        self.fault: StoreFault | None = None
        self._on_put = on_put
        self._folders: dict[str, dict[str, bytes]] = {"": {}}

    def write_atomic(self, path: str, chunks: Iterable[Buffer]) -> None:
        self.put(path, b"".join(chunks))

    def put(self, path: str, data: bytes) -> None:
        self._check(is_write=True)
        folder, _, name = path.rpartition("/")
        self._folders.setdefault(folder, {})[name] = data
        self._on_put(path, data)

    def create_exclusive(self, path: str, data: bytes) -> bool:
        self._check(is_write=True)
        if self.size(path) is not None:
            return False
        self.put(path, data)
        return True

    def refuses_second_put(self, path: str) -> bool:
        return True

    def read(self, path: str) -> bytes:
        self._check()
        folder, _, name = path.rpartition("/")
        try:
            return self._folders[folder][name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such file", path) from None

    def open(self, path: str) -> FileIO | None:
        return None

    def read_into(self, path: str, offset: int, out: memoryview, file: FileIO | None = None) -> int:
        data = self.read(path)[offset : offset + len(out)]
        out[: len(data)] = data
        return len(data)

    def list(self, folder: str) -> list[str]:
        self._check()
        names = list(self._folders.get(folder, ()))
        return sorted(names if folder else [*names, *(name for name in self._folders if name)])

    def size(self, path: str) -> int | None:
        self._check()
        folder, _, name = path.rpartition("/")
        data = self._folders.get(folder, {}).get(name)
        return None if data is None else len(data)

    def remove(self, path: str) -> None:
        self._check()
        if path in self._folders:
            del self._folders[path]
            return
        folder, _, name = path.rpartition("/")
        self._folders.get(folder, {}).pop(name, None)

    def free_bytes(self) -> int | None:
        return 0 if self.fault is StoreFault.full else None

    def names(self, folder: str) -> Sequence[str]:
        """Also while the store does not answer."""
        return sorted(self._folders.get(folder, ()))

    def tear(self, path: str, num_bytes: int) -> None:
        """What a machine that lost power, or a bad disk, leaves of a file: its beginning."""
        folder, _, name = path.rpartition("/")
        self._folders[folder][name] = self._folders[folder][name][:num_bytes]

    def _check(self, is_write: bool = False) -> None:
        if self.fault is not None and (is_write or self.fault is not StoreFault.full):
            raise OSError(_ERRNO[self.fault], self.fault.value)
