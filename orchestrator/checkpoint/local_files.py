"""A checkpoint store in a local (or NFS) folder: write, fsync, rename, fsync the folder."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from io import FileIO
from pathlib import Path

from orchestrator.checkpoint.faults import MOUNT_GONE

Buffer = bytes | memoryview

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_TEMPORARY_SUFFIX = ".tmp"


class LocalFiles:
    """Raises OSError as the system does; `Store` translates. Paths are relative to `root`, with `/`.

    What was mounted at the first access must stay so: else ENODEV, instead of an empty folder where checkpoints
    were, or of checkpoints under a mount point where nobody will find them. A mount that comes back serves again.
    """

    def __init__(self, root: Path, mode: int = 0o666) -> None:
        """`mode` is that of new files, less the umask."""
        self.root = root.absolute()
        self._mode = mode
        self._mount_point: Path | None = None

    def write_atomic(self, path: str, chunks: Iterable[Buffer]) -> None:
        """After it returns, `path` is there whole, also after a power cut; before, nothing of it is."""
        final = self._at(path)
        temporary = self._write_temporary(final, chunks)
        try:
            temporary.replace(final)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _fsync_folder(final.parent)

    def create_exclusive(self, path: str, data: bytes) -> bool:
        final = self._at(path)
        if final.exists():
            return False
        temporary = self._write_temporary(final, [data])
        try:
            # A link, unlike O_EXCL, makes the name appear with its whole content.
            os.link(temporary, final)
        except OSError as error:
            if error.errno in _NO_HARD_LINKS:
                return self._create_in_place(final, data)
            if error.errno != errno.EEXIST:
                raise
            # Over NFS a link that was made can be answered "exists" when the request was sent twice.
            if not _same_file(temporary, final):
                return False
        finally:
            temporary.unlink(missing_ok=True)
        _fsync_folder(final.parent)
        return True

    def refuses_second_put(self, path: str) -> bool:
        return True  # a link or O_EXCL, which file systems do not ignore

    def read(self, path: str) -> bytes:
        return self._at(path).read_bytes()

    def open(self, path: str) -> FileIO:
        """For `read_into`: several ranges of one file then cost one look-up."""
        return self._at(path).open("rb", buffering=0)

    def read_into(self, path: str, offset: int, out: memoryview, file: FileIO | None = None) -> int:
        """Fill `out` from byte `offset` on; the number of bytes found, fewer only at the end of the file."""
        # Not a memory map: a map of a file that shrinks kills the process with SIGBUS.
        with self.open(path) if file is None else nullcontext(file) as opened:
            done = 0
            while done < len(out):
                count = os.preadv(opened.fileno(), [out[done:]], offset + done)
                if count == 0:
                    break
                done += count
            return done

    def list(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self._at(folder)))  # noqa: PTH208 -- names, not paths
        except FileNotFoundError:
            return []

    def size(self, path: str) -> int | None:
        try:
            return self._at(path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def remove(self, path: str) -> None:
        target = self._at(path)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        if target.parent.is_dir():
            _fsync_folder(target.parent)

    def free_bytes(self) -> int | None:
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def _at(self, path: str) -> Path:
        if self._mount_point is None:
            self._mount_point = next(p for p in (self.root, *self.root.parents) if p.is_mount())
        elif not self._mount_point.is_mount():
            raise OSError(MOUNT_GONE, f"nothing is mounted on {self._mount_point} any more")
        return self.root / path

    def _write_temporary(self, final: Path, chunks: Iterable[Buffer]) -> Path:
        _make_folders(final.parent)
        temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")
        try:
            with open(temporary, "xb", buffering=0, opener=self._open) as file:
                _write_durably(file.fileno(), chunks)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _create_in_place(self, final: Path, data: bytes) -> bool:
        """For file systems without hard links; a crash in between leaves a file that fails its checksum."""
        try:
            with open(final, "xb", buffering=0, opener=self._open) as file:
                _write_durably(file.fileno(), [data])
        except FileExistsError:
            return False
        _fsync_folder(final.parent)
        return True

    def _open(self, path: str, flags: int) -> int:
        return os.open(path, flags, self._mode)


def _write_durably(descriptor: int, chunks: Iterable[Buffer]) -> None:
    for chunk in chunks:
        rest = memoryview(chunk).cast("B")
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def _same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except FileNotFoundError:
        return False


def _make_folders(folder: Path) -> None:
    """Make `folder`, and make it durable: a folder's entry lies in its parent."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
