"""Snapshots on their way to a peer's memory, in the background.

What is not there when its attempt ends is hung up on: a peer that says nothing, behind a partition or stopped, must
not hold up the copies of the attempt that follows.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from orchestrator.agent.peers import store_copy
from orchestrator.agent.wire import hang_up
from orchestrator.checkpoint.slots import Share
from orchestrator.errors import CheckpointError

SENDERS = 2
RETRY_S = 1.0
"""Between two tries to reach a peer."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The node that holds copies of this one's snapshots."""

    host: str
    port: int
    secret: str


class Sending:
    """Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attempt = _Attempt()

    def send(self, peer: Peer, descriptor: int, share: Share, on_end: Callable[[bool], None]) -> None:
        """Copy a sealed slot, trying again until it is there or the attempt has ended; `on_end` gets which."""
        with self._lock:
            attempt = self._attempt
            attempt.senders.submit(lambda: attempt.work(peer, descriptor, share, on_end))

    def end_attempt(self) -> None:
        """Its ranks are gone: nobody waits for what is still on its way."""
        with self._lock:
            before, self._attempt = self._attempt, _Attempt()
        before.end(wait=False)

    def close(self) -> None:
        self._attempt.end(wait=True)


@dataclass(slots=True)
class _Attempt:
    senders: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(SENDERS, thread_name_prefix="replicate")
    )
    is_over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    connections: set[socket.socket] = field(default_factory=set)

    def work(self, peer: Peer, descriptor: int, share: Share, on_end: Callable[[bool], None]) -> None:
        is_copied = False
        try:
            while not is_copied and not self.is_over.is_set():
                try:
                    store_copy((peer.host, peer.port), peer.secret, descriptor, share, self._opened)
                    is_copied = True
                except CheckpointError:
                    self.is_over.wait(RETRY_S)
        finally:
            on_end(is_copied)

    @contextlib.contextmanager
    def _opened(self, connection: socket.socket) -> Iterator[None]:
        with self.lock:
            self.connections.add(connection)
            if self.is_over.is_set():
                hang_up(connection)
        try:
            yield
        finally:
            with self.lock:
                self.connections.discard(connection)

    def end(self, *, wait: bool) -> None:
        self.is_over.set()
        with self.lock:
            for connection in self.connections:
                hang_up(connection)
        self.senders.shutdown(wait=wait)
