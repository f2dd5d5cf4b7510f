import errno
import os
import pickle
import secrets
import shutil
import subprocess
import sys
import threading

import pytest

from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointError, StoreError


@pytest.fixture(params=["local", "file", "memory"])
def store(request, tmp_path):
    if request.param == "memory":
        store = Store(f"memory://{secrets.token_hex(8)}")
        yield store
        store.remove("")
    else:
        yield Store(tmp_path / "store" if request.param == "local" else f"file://{tmp_path}/store")


def test_what_is_written_is_read_back(store):
    store.write_atomic("a/b/file", [b"one ", memoryview(b"two"), b""])
    assert store.read("a/b/file") == b"one two"
    assert store.size("a/b/file") == 7
    assert store.exists("a/b/file")
    assert store.list("a/b") == ["file"]
    assert store.list() == ["a"]
    store.write_atomic("a/b/file", [b"new"])
    assert store.read("a/b/file") == b"new"


def test_ranges_are_read(store):
    store.write_atomic("f", [bytes(range(100))])
    assert bytes(store.read_range("f", 10, 5)) == bytes(range(10, 15))
    out = memoryview(bytearray(4))
    store.read_range("f", 96, 4, out)
    assert bytes(out) == bytes(range(96, 100))
    assert bytes(store.read_range("f", 100, 0)) == b""
    with pytest.raises(CheckpointError, match="is damaged: it ends at byte 100, 101 bytes are needed"):
        store.read_range("f", 96, 5)
    with pytest.raises(ValueError, match="out holds 4 bytes"):
        store.read_range("f", 0, 5, out)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 24])
def test_chunks_are_the_whole_file(store, size):
    data = bytes(range(size))
    store.write_atomic("f", [data])
    assert b"".join(bytes(chunk) for chunk in store.read_chunks("f", chunk_bytes=8)) == data


def test_what_is_not_there(store):
    assert store.size("none") is None
    assert not store.exists("folder/none")
    assert store.list("none") == []
    store.remove("none")
    for read in (lambda: store.read("none"), lambda: store.read_range("none", 0, 1)):
        with pytest.raises(StoreError, match=r"can't read .*none: it does not exist"):
            read()


def test_removing_a_folder_takes_all_in_it(store):
    store.write_atomic("a/one", [b"1"])
    store.write_atomic("a/b/two", [b"2"])
    store.write_atomic("c", [b"3"])
    store.remove("a")
    assert store.list() == ["c"]
    store.remove("c")
    assert store.list() == []


def test_an_exclusive_create_has_one_winner(store):
    assert store.claims_exclusively()
    assert store.create_exclusive("a/claim", b"first")
    assert not store.create_exclusive("a/claim", b"second")
    assert store.read("a/claim") == b"first"
    assert store.list("a") == ["claim"]


def test_of_many_threads_one_creates(tmp_path):
    store = Store(tmp_path)
    start, won = threading.Barrier(8), []

    def claim(number):
        start.wait()
        if store.create_exclusive("claim", str(number).encode() * 1000):
            won.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("claim") == str(won[0]).encode() * 1000
    assert store.list() == ["claim"]


def test_a_failing_source_leaves_nothing_and_keeps_its_own_error(store):
    def chunks():
        yield b"half"
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        store.write_atomic("a/f", chunks())
    assert store.list("a") == []


def test_a_failing_source_keeps_the_old_content(tmp_path):
    def chunks():
        yield b"half"
        raise OSError(errno.EIO, "a read of its own")

    store = Store(tmp_path)
    store.write_atomic("f", [b"old"])
    with pytest.raises(OSError, match="a read of its own"):
        store.write_atomic("f", chunks())
    assert store.read("f") == b"old"
    assert store.list() == ["f"]


def test_a_killed_write_leaves_only_a_temporary(tmp_path):
    code = """
import os, signal, sys
from orchestrator.checkpoint.store import Store
def chunks():
    yield b"half"
    os.kill(os.getpid(), signal.SIGKILL)
    yield b"never"
Store(sys.argv[1]).write_atomic("a/f", chunks())
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -9
    (name,) = Store(tmp_path).list("a")
    assert name.startswith(".")


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path):
    """On a real file system of 256 kB, in a mount namespace that ends with the process."""
    code = """
import os, sys
from orchestrator.checkpoint.store import Store
from orchestrator.errors import StoreError
store = Store(sys.argv[1])
store.write_atomic("f", [b"old"])
try:
    store.write_atomic("f", (bytes(65536) for _ in range(16)), 1_048_576)
except StoreError as error:
    print(error)
print(store.read("f"), store.list())
"""
    unshare = shutil.which("unshare")
    flags = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
    probe = [unshare or "unshare", *flags, "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if unshare is None or subprocess.run(probe, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs in a namespace of its own")
    script = 'mount -t tmpfs -o size=256k none "$1" && exec "$2" -c "$3" "$1"'
    command = [unshare, *flags, "sh", "-c", script, "sh", str(tmp_path), sys.executable, code]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[0].startswith(f"no space left to write {tmp_path}/f, it needs 1,048,576 bytes and ")
    assert "checkpoint.keep_last" in lines[0]
    assert lines[1] == "b'old' ['f']"


def test_a_file_where_a_folder_is_needed_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"can't write .*/file/a: "):
        Store(tmp_path / "file").write_atomic("a", [b"x"])


def test_an_unknown_scheme_is_one_sentence():
    with pytest.raises(StoreError, match="can't open nosuch://bucket/x"):
        Store("nosuch://bucket/x")


def test_a_password_in_a_url_is_not_shown(tmp_path):
    with pytest.raises(StoreError) as caught:
        Store("nosuch://user:hunter2@host/x")
    assert "hunter2" not in str(caught.value)
    assert "host/x" in str(caught.value)


@pytest.mark.parametrize("url", ["memory://pickled", "relative/folder"])
def test_a_store_survives_pickling(url):
    store = Store(url)
    assert pickle.loads(pickle.dumps(store)).url_of("a") == store.url_of("a")


def test_people_see_no_credentials_but_the_url_keeps_them():
    store = Store("memory://user:hunter2@host/x")
    assert store.where("a") == "memory://host/x/a"
    assert store.url_of("a") == "memory://user:hunter2@host/x/a"


def test_a_relative_folder_stays_when_the_working_directory_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("here")
    monkeypatch.chdir("/")
    store.write_atomic("f", [b"x"])
    assert (tmp_path / "here" / "f").read_bytes() == b"x"
