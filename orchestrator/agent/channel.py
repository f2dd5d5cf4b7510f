"""JSON messages over a socket pair between an agent, its zygote and its ranks.

Length-prefixed frames through multiprocessing's Connection; only bytes are sent, never pickles.
"""

import array
import contextlib
import json
import os
import socket
import threading
from multiprocessing.connection import Connection
from typing import Any

Message = dict[str, Any]
_DATAGRAM_BYTES = 2**18
"""More than the kernel lets anybody send at once."""


class Channel:
    """One end. Reading blocks; `ready` asks first. A closed peer raises EOFError (read) or OSError (write)."""

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._sending = threading.Lock()

    @staticmethod
    def pair() -> tuple["Channel", int]:
        """(this end, descriptor of the other end)."""
        here, there = socket.socketpair()
        return Channel(here.detach()), there.detach()

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, message: Message) -> None:
        with self._sending:
            self._connection.send_bytes(json.dumps(message).encode())

    def send_descriptors(self, message: Message, descriptors: list[int]) -> None:
        """A message and duplicates of descriptors; the peer takes them with `receive_descriptors`."""
        with self._sending:
            self._connection.send_bytes(json.dumps({**message, "descriptors": len(descriptors)}).encode())
            with socket.socket(fileno=os.dup(self.fileno())) as sock:
                socket.send_fds(sock, [b"D"], descriptors)

    def receive_descriptors(self, message: Message) -> list[int]:
        """What came with `message`, which was just received."""
        with socket.socket(fileno=os.dup(self.fileno())) as sock:
            _, descriptors, _, _ = socket.recv_fds(sock, 1, message["descriptors"])
        return descriptors

    def receive(self) -> Message:
        message: Message = json.loads(self._connection.recv_bytes())
        return message

    def ready(self, timeout_s: float = 0.0) -> bool:
        return self._connection.poll(timeout_s)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.close()


def send_with_descriptors(sock: socket.socket, message: Message, descriptors: list[int]) -> None:
    """One datagram of a SOCK_SEQPACKET pair; the receiver gets duplicates of the descriptors."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sock.sendmsg([json.dumps(message).encode()], ancillary)


def receive_with_descriptors(sock: socket.socket) -> tuple[Message, list[int]]:
    """Raises EOFError when the peer has closed."""
    data, descriptors, _, _ = socket.recv_fds(sock, _DATAGRAM_BYTES, 4)
    if not data:
        raise EOFError
    return json.loads(data), descriptors
