"""Temporary folders that are locked while their process lives: what SIGKILL leaves, the next process sweeps up."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def locked_folder(prefix: str, parent: str) -> tuple[str, int]:
    """A new folder and the descriptor that locks it: the kernel unlocks it however this process ends."""
    while True:
        path = tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent)
        with contextlib.suppress(FileNotFoundError):  # another process's sweep was faster than our lock
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if Path(path).exists():
                return path, descriptor
            os.close(descriptor)


@contextlib.contextmanager
def scratch_folder(prefix: str, parent: str) -> Iterator[Path]:
    """A locked folder that is taken away in the end."""
    path, descriptor = locked_folder(prefix, parent)
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def sweep_folders(prefix: str, parent: str) -> None:
    """Remove this user's folders of that prefix whose process is gone."""
    for folder in Path(parent).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # it is locked, so in use, or gone by now
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid != os.getuid():
                    continue
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
