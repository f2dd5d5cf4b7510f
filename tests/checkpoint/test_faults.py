import contextlib
import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from saving import random_state, save

from orchestrator.checkpoint.commit import committed_steps, newest_valid
from orchestrator.checkpoint.faults import fault_of, sentence
from orchestrator.checkpoint.store import Store
from orchestrator.errors import StoreError, StoreFault


class ClientError(Exception):
    """Shaped like botocore's."""

    def __init__(self, code, status):
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class NoCredentialsError(Exception): ...


class ServerDisconnectedError(Exception): ...


def raised_from(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (OSError(errno.ENOSPC, "x"), StoreFault.full),
        (OSError(errno.EDQUOT, "x"), StoreFault.full),
        (OSError(errno.EFBIG, "x"), StoreFault.full),
        (OSError(errno.EIO, "x"), StoreFault.busy),
        (OSError(errno.ESTALE, "x"), StoreFault.busy),
        (ConnectionResetError(errno.ECONNRESET, "x"), StoreFault.busy),
        (TimeoutError("x"), StoreFault.busy),
        (ServerDisconnectedError(), StoreFault.busy),
        (PermissionError(errno.EACCES, "x"), StoreFault.denied),
        (OSError(errno.EROFS, "x"), StoreFault.denied),
        (NoCredentialsError("x"), StoreFault.denied),
        (OSError(errno.ENOTCONN, "x"), StoreFault.gone),
        (FileNotFoundError(errno.ENOENT, "x"), StoreFault.other),
        (ValueError("x"), StoreFault.other),
        (ClientError("SlowDown", 503), StoreFault.busy),
        (ClientError("", 502), StoreFault.busy),
        (ClientError("", 429), StoreFault.busy),
        (ClientError("ExpiredToken", 400), StoreFault.denied),
        (ClientError("AccessDenied", 403), StoreFault.denied),
        (ClientError("NoSuchBucket", 404), StoreFault.gone),
        (ClientError("InvalidArgument", 400), StoreFault.other),
        # What a backend makes of it says less than what it was made from.
        (raised_from(OSError(errno.EIO, "x"), ClientError("InvalidArgument", 400)), StoreFault.other),
        (raised_from(FileNotFoundError("x"), ClientError("NoSuchBucket", 404)), StoreFault.gone),
        (raised_from(RuntimeError("x"), ConnectionResetError(errno.ECONNRESET, "x")), StoreFault.busy),
    ],
)
def test_what_an_error_means(error, fault):
    assert fault_of(error) is fault


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "no space left to write /d/f, it needs 1,000 bytes and 10 are free; free some"),
        (OSError(errno.EDQUOT, "x"), "the disk quota is used up to write /d/f"),
        (OSError(errno.EFBIG, "x"), "can't write /d/f: the file is too large for a limit (ulimit -f)"),
        (OSError(errno.EROFS, "x"), "can't write /d/f: the file system is read-only"),
        (OSError(errno.EIO, "x"), "can't write /d/f: input/output error; check the disk"),
        (OSError(errno.ENODEV, "x"), "can't write /d/f: its mount, bucket or device is gone (x); bring it back"),
        (PermissionError(errno.EACCES, "no"), "can't write /d/f: permission denied; check the owner"),
        (ClientError("ExpiredToken", 403), "can't write /d/f: the credentials have expired; renew them"),
        (ClientError("SlowDown", 503), "can't write /d/f: the store does not answer as it should"),
        (FileNotFoundError(errno.ENOENT, "x"), "can't write /d/f: it does not exist"),
        (OSError(errno.ENAMETOOLONG, "too long"), "can't write /d/f: too long"),
        (ValueError("odd"), "can't write /d/f: ValueError: odd; check the URL"),
    ],
)
def test_one_sentence_for_each(error, words):
    text = sentence("write", "/d/f", error, num_bytes=1000, free_bytes=10)
    assert text.startswith(words)
    assert "\n" not in text


def test_a_real_input_output_error_is_named_and_passes():
    """The kernel says EIO where a process has nothing mapped; a reader with the file open falls back to the store."""
    for opened in (False, True):
        store = Store("/proc/self")
        file = store.open("mem") if opened else None
        with pytest.raises(
            StoreError, match="can't read /proc/self/mem: input/output error; check the disk"
        ) as caught:
            store.read_range("mem", 0, 8, None, file)
        assert caught.value.fault is StoreFault.busy


def test_a_store_error_keeps_its_fault_when_pickled():
    error = pickle.loads(pickle.dumps(StoreError("full", StoreFault.full)))
    assert (str(error), error.fault) == ("full", StoreFault.full)


def in_process(code: str, *arguments: object) -> list[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_a_limit_on_file_size_leaves_what_was_there(tmp_path):
    code = """
import resource, sys
from orchestrator.checkpoint.store import Store
from orchestrator.errors import StoreError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store = Store(sys.argv[1])
store.write_atomic("f", [b"old"])
try:
    store.write_atomic("f", (bytes(65536) for _ in range(16)))
except StoreError as error:
    print(error.fault, error)
print(store.read("f"), store.list())
"""
    lines = in_process(code, tmp_path)
    assert lines[0].startswith(f"full can't write {tmp_path}/f: the file is too large for a limit (ulimit -f)")
    assert lines[1] == "b'old' ['f']"


def mounted(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0


@pytest.fixture
def mount(tmp_path):
    """A file system of its own at tmp_path/mount, kept at tmp_path/kept."""
    kept, path = tmp_path / "kept", tmp_path / "mount"
    kept.mkdir()
    path.mkdir()
    if os.geteuid() or not mounted("-t", "tmpfs", "-o", "size=1m", "none", str(kept)):
        pytest.skip("needs root and the right to mount")
    assert mounted("--bind", str(kept), str(path))
    yield path
    for folder in (path, kept):
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def test_a_vanished_mount_is_no_empty_store(mount, tmp_path):
    """Neither read as one without checkpoints, nor written to under the mount point; back, it serves again."""
    store = Store(mount / "run")
    store.write_atomic("f", [b"content"])
    subprocess.run(["umount", "-l", str(mount)], check=True)
    calls = [
        store.list,
        lambda: store.size("f"),
        lambda: store.read("f"),
        lambda: store.write_atomic("g", [b"x"]),
        lambda: store.create_exclusive("h", b"x"),
        lambda: store.remove("f"),
    ]
    for call in calls:
        with pytest.raises(StoreError, match=r"nothing is mounted on .* any more") as caught:
            call()
        assert caught.value.fault is StoreFault.gone
    assert list(mount.iterdir()) == []
    assert mounted("--bind", str(tmp_path / "kept"), str(mount))
    assert store.read("f") == b"content"
    store.write_atomic("g", [b"x"])


class Loop:
    """ext4 on a file that is larger than the file system it lies on."""

    def __init__(self, folder: Path, mounted_on: Path) -> None:
        self._folder = folder
        disk = folder / "disk"
        disk.touch()
        os.truncate(disk, 32 << 20)
        make = ["mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard", str(disk)]
        subprocess.run(make, check=True, capture_output=True)
        command = ["losetup", "--find", "--show", str(disk)]
        self.device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        self.path = mounted_on
        self.path.mkdir()

    def lose_content(self) -> None:
        """What is not in memory can't be read any more."""
        os.truncate(self._folder / "disk", 4096)

    def fill_up_below(self) -> None:
        """From here on the disk has no place for blocks that it has not written before: to it that is an error."""
        with (self._folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))


@pytest.fixture
def loop(tmp_path):
    folder = tmp_path / "below"
    folder.mkdir()
    if os.geteuid() or not mounted("-t", "tmpfs", "-o", "size=12m", "none", str(folder)):
        pytest.skip("needs root and the right to mount")
    with contextlib.ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", str(folder)], check=False)
        try:
            loop = Loop(folder, tmp_path / "disk")
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            pytest.skip(f"needs mkfs.ext4 and loop devices: {error}")
        stack.callback(subprocess.run, ["losetup", "--detach", loop.device], check=True)
        if not mounted(loop.device, str(loop.path)):
            pytest.skip("needs ext4")
        stack.callback(subprocess.run, ["umount", str(loop.path)], check=True)
        yield loop


def chunks(count: int) -> Iterator[bytes]:
    return (bytes([number]) * 65536 for number in range(count))


def test_a_disk_that_takes_a_write_and_then_has_no_place_for_it_leaves_what_was_there(loop):
    """Only the fsync says that it never arrived."""
    store = Store(loop.path / "run")
    store.write_atomic("f", [b"old"])
    os.sync()
    loop.fill_up_below()
    with pytest.raises(StoreError, match="no space left to write") as caught:
        store.write_atomic("f", chunks(100))
    assert caught.value.fault is StoreFault.full
    assert (store.read("f"), store.list()) == (b"old", ["f"])


def test_a_disk_that_fails_to_read_is_no_damage(loop):
    """The kernel answers EIO: nothing is set aside, and no older checkpoint is taken for the newest."""
    store = Store(loop.path / "run")
    state = random_state({"w": (500, 100), "b": (3,)})
    for step in (10, 20):
        save(store, step, state)
    os.sync()
    for file in (loop.path / "run" / "step_00000020").glob("*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    loop.lose_content()
    with pytest.raises(StoreError, match="input/output error; check the disk") as caught:
        newest_valid(store, None, lambda step, reason: pytest.fail(f"step {step} was rejected: {reason}"))
    assert caught.value.fault is StoreFault.busy
    assert committed_steps(store) == [10, 20]


def test_a_read_only_file_system_is_named(mount):
    store = Store(mount / "run")
    store.write_atomic("f", [b"content"])
    assert mounted("-o", "remount,bind,ro", str(mount))
    with pytest.raises(StoreError, match="the file system is read-only") as caught:
        store.write_atomic("f", [b"other"])
    assert caught.value.fault is StoreFault.denied
    assert store.read("f") == b"content"
