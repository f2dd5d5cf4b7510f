"""How agents, and ranks, ask another node's agent: an authenticated TCP connection, JSON frames.

Who asks proves that it knows the run's secret, which the driver made (HMAC over a challenge). The bytes are not
encrypted: what travels is the cluster's own traffic, like that of NCCL and gloo.
"""

import contextlib
import hmac
import json
import secrets
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.errors import CheckpointError

CONNECT_TIMEOUT_S = 5.0
TRANSFER_TIMEOUT_S = 60.0
"""Without a byte for so long a transfer has failed."""
CHALLENGE_BYTES = 32
MAX_FRAME_BYTES = 4096
_LENGTH = struct.Struct("<I")


Around = Callable[[socket.socket], contextlib.AbstractContextManager[object]]


@contextlib.contextmanager
def asked(
    peer: tuple[str, int],
    secret: str,
    request: dict[str, Any],
    around: Around = contextlib.nullcontext,
) -> Iterator[socket.socket]:
    """A connection on which `request` was sent; `around` is entered with it while it is open. Network errors become
    CheckpointError."""
    try:
        with socket.create_connection(peer, timeout=CONNECT_TIMEOUT_S) as connection, around(connection):
            connection.settimeout(TRANSFER_TIMEOUT_S)
            connection.sendall(_proof(secret.encode(), receive_exactly(connection, CHALLENGE_BYTES)))
            send_frame(connection, request)
            yield connection
    except (OSError, EOFError) as error:
        raise CheckpointError(f"peer {peer[0]}:{peer[1]} can't be reached ({error or 'it closed'})") from error


def is_trusted(connection: socket.socket, secret: bytes) -> bool:
    """Whether who has connected knows `secret`; nobody does where there is none yet."""
    challenge = secrets.token_bytes(CHALLENGE_BYTES)
    connection.sendall(challenge)
    proof = receive_exactly(connection, CHALLENGE_BYTES)
    return bool(secret) and hmac.compare_digest(proof, _proof(secret, challenge))


def hang_up(connection: socket.socket) -> None:
    """Whoever waits for this connection, in whichever thread, waits no longer."""
    with contextlib.suppress(OSError):  # the other side was faster
        connection.shutdown(socket.SHUT_RDWR)


def _proof(secret: bytes, challenge: bytes) -> bytes:
    return hmac.digest(secret, challenge, "sha256")


def send_frame(connection: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive_frame(connection: socket.socket) -> dict[str, Any]:
    (count,) = _LENGTH.unpack(receive_exactly(connection, _LENGTH.size))
    if count > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {count} bytes")
    message: dict[str, Any] = json.loads(receive_exactly(connection, count))
    return message


def receive_exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
