"""A way to a TCP port on this host that lets through no more bytes than it was told to, as a slow network does."""

import contextlib
import math
import socket
import threading
from typing import Self

HOST = "127.0.0.1"
MOST_AT_ONCE = 1 << 16


class SlowLine:
    """Use as a context manager. What goes to the port is counted, answers are not; at first it lets all through."""

    def __init__(self, target_port: int) -> None:
        self._target = HOST, target_port
        self._allowed: float = math.inf
        self._is_closing = False
        self._changed = threading.Condition()
        self._server = socket.create_server((HOST, 0))
        self.port: int = self._server.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._server.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._server.close()
        for end in self._sockets:
            with contextlib.suppress(OSError):  # hung up on already
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()

    def stop(self) -> None:
        """From here on nothing more passes than `allow` says."""
        with self._changed:
            self._allowed = 0

    def allow(self, num_bytes: float) -> None:
        """So many more may pass."""
        with self._changed:
            self._allowed += num_bytes
            self._changed.notify_all()

    def _accept(self) -> None:
        while True:
            try:
                near = self._server.accept()[0]
            except OSError:  # closed
                return
            far = socket.create_connection(self._target)
            self._sockets += [near, far]
            for ends in ((near, far, True), (far, near, False)):
                thread = threading.Thread(target=self._carry, args=ends)
                self._threads.append(thread)
                thread.start()

    def _carry(self, source: socket.socket, sink: socket.socket, is_counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(self._wait_for_leave() if is_counted else MOST_AT_ONCE):
                if is_counted:
                    self.allow(-len(data))
                sink.sendall(data)
        for end in (source, sink):  # whoever hangs up, the other side hears of it
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _wait_for_leave(self) -> int:
        """How many bytes may pass now: one at least, or nobody would hear that the sender has hung up."""
        with self._changed:
            self._changed.wait_for(lambda: self._allowed >= 1 or self._is_closing)
            return int(min(MOST_AT_ONCE, max(1, self._allowed)))
