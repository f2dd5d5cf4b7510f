"""Reading a checkpoint that is spread over the nodes' own disks: each file's ranges come from the node that has it.

A connection (see wire.py) reads one file:
    {"op": "file", "step", "file"}    -> {"problem": str | None}
    offset, count (two int64)         -> found (int64), then so many bytes; fewer only at the end of the file
and so on until the reader closes it.
"""

import contextlib
import json
import os
import socket
import struct
from collections import OrderedDict
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

from orchestrator.agent.wire import asked, receive_exactly, receive_frame, send_frame
from orchestrator.checkpoint.layout import attempt_of, step_folder
from orchestrator.checkpoint.reader import CheckpointReader, read_marker
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointError
from orchestrator.spec import ResumePoint

HOLDERS = "holders.json"
"""Beside the marker: file -> [address, port] of an agent that has it."""
MAX_CONNECTIONS = 64
"""Of one rank, to the files of a checkpoint that thousands of ranks wrote."""
_WANTED = struct.Struct("<qq")
_FOUND = struct.Struct("<q")


def serve_ranges(connection: socket.socket, folder: Path, step: int, file: str) -> None:
    """Until the reader closes the connection. Only payload files are given."""
    connection.settimeout(None)  # it reads when it is ready
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    path = folder / step_folder(step) / file
    if attempt_of(file) is None or path.name != file:
        send_frame(connection, {"problem": f"{file!r} is not the name of a payload"})
        return
    try:
        opened = path.open("rb", buffering=0)
    except OSError as error:
        send_frame(connection, {"problem": f"can't read {path}: {error.strerror}"})
        return
    with opened:
        send_frame(connection, {"problem": None})
        while True:
            offset, count = _WANTED.unpack(receive_exactly(connection, _WANTED.size))
            count = max(0, min(count, os.fstat(opened.fileno()).st_size - offset))
            connection.sendall(_FOUND.pack(count))
            sent = 0
            while sent < count:
                sent += os.sendfile(connection.fileno(), opened.fileno(), offset + sent, count - sent)


class RemoteFile:
    """A file on another node's disk; the connection stays open between ranges. For one thread."""

    def __init__(self, peer: tuple[str, int], secret: str, step: int, file: str) -> None:
        self._peer = peer
        self._secret = secret
        self._request = {"op": "file", "step": step, "file": file}
        self._open = contextlib.ExitStack()
        self._connection: socket.socket | None = None

    def read_into(self, offset: int, out: memoryview) -> int:
        """Fill `out` from byte `offset` on; the number of bytes found. Raises CheckpointError."""
        try:
            return self._read(offset, out)
        except (OSError, EOFError):  # an idle connection may have been cut: once more on a new one
            self.close()
            try:
                return self._read(offset, out)
            except (OSError, EOFError) as error:
                file = self._request["file"]
                raise CheckpointError(
                    f"peer {self._peer[0]}:{self._peer[1]} stopped sending {file} ({error or 'it closed'})"
                ) from error

    def _read(self, offset: int, out: memoryview) -> int:
        connection = self._connected()
        connection.sendall(_WANTED.pack(offset, len(out)))
        (found,) = _FOUND.unpack(receive_exactly(connection, _FOUND.size))
        done = 0
        while done < found:
            count = connection.recv_into(out[done:found])
            if count == 0:
                raise EOFError
            done += count
        return done

    def _connected(self) -> socket.socket:
        if self._connection is None:
            connection = self._open.enter_context(asked(self._peer, self._secret, self._request))
            if (problem := receive_frame(connection)["problem"]) is not None:
                raise CheckpointError(f"peer {self._peer[0]}: {problem}")
            self._connection = connection
        return self._connection

    def close(self) -> None:
        self._connection = None
        with contextlib.suppress(CheckpointError):
            self._open.close()

    def __del__(self) -> None:
        self.close()


class SpreadStore(Store):
    """This node's folder; files that it lacks are read through the agents that have them. Only ranges are read."""

    def __init__(self, folder: str, step: int, holders: Mapping[str, tuple[str, int]], secret: str) -> None:
        super().__init__(folder)
        self._step = step
        self._holders = holders
        self._secret = secret
        self._remotes: OrderedDict[str, RemoteFile] = OrderedDict()

    def read_range(
        self, path: str, offset: int, count: int, out: memoryview | None = None, file: FileIO | None = None
    ) -> memoryview:
        remote = self._remote(path)
        if remote is None:
            return super().read_range(path, offset, count, out, file)
        target = memoryview(bytearray(count)) if out is None else out.cast("B")
        found = remote.read_into(offset, target)
        if found < count:
            raise CheckpointError(f"{path} on another node is damaged: it ends at byte {offset + found}")
        return target

    def open(self, path: str) -> FileIO | None:
        return None if self._remote(path) else super().open(path)

    def _remote(self, path: str) -> RemoteFile | None:
        name = path.rpartition("/")[2]
        if name not in self._holders or super().exists(path):
            return None
        if name not in self._remotes:
            if len(self._remotes) >= MAX_CONNECTIONS:
                self._remotes.popitem(last=False)[1].close()
            self._remotes[name] = RemoteFile(self._holders[name], self._secret, self._step, name)
        self._remotes.move_to_end(name)
        return self._remotes[name]


def open_spread(resume: ResumePoint, folder: str, secret: str, key_file: str | None) -> CheckpointReader:
    """The checkpoint of `resume` in this node's `folder` and on the other nodes' disks. Raises CheckpointError."""
    store = Store(folder)
    holders = json.loads(store.read(f"{step_folder(resume.step)}/{HOLDERS}"))
    peers = {file: (str(address), int(port)) for file, (address, port) in holders.items()}
    marker = read_marker(store, resume.step)
    return CheckpointReader(SpreadStore(folder, resume.step, peers, secret), marker, key_file)
