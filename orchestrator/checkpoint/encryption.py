"""Payload files encrypted at rest, in chunks, so that ranges can be read. The only file that imports cryptography.

A stored file is a header (magic and a random salt) and chunks of 1 MiB, each followed by its tag (AES-256-GCM). Every
file has a key of its own, derived from the run's key and the salt, so the nonce is just the chunk's index and whether
it is the last one: a chunk that was changed, moved, left out or added does not decrypt. The header and the file's
path in the store are authenticated with every chunk. The marker is not encrypted: names, shapes, loss and settings
can be read without the key.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orchestrator.checkpoint.key import KEY_BYTES, Key
from orchestrator.checkpoint.local_files import Buffer
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointError

CIPHER = "AES-256-GCM"
CHUNK_BYTES = 1 << 20
"""Of plain text."""
TAG_BYTES = 16
HEADER_BYTES = 40
CHUNKS_PER_READ = 8

_MAGIC = b"phalanx\x01"
_INFO = b"phalanx checkpoint payload"


def facts(key_check: str) -> dict[str, Any]:
    """What a marker says about its payloads' encryption."""
    return {"cipher": CIPHER, "chunk_bytes": CHUNK_BYTES, "key_check": key_check}


def sealed_bytes(plain_bytes: int) -> int:
    """Size of the stored file."""
    return HEADER_BYTES + plain_bytes + TAG_BYTES * max(1, -(-plain_bytes // CHUNK_BYTES))


def plain_bytes(stored_bytes: int) -> int:
    """The inverse of `sealed_bytes`."""
    body = stored_bytes - HEADER_BYTES
    return body - TAG_BYTES * -(-body // (CHUNK_BYTES + TAG_BYTES))


def sealed(chunks: Iterable[Buffer], key: Key, path: str) -> Iterator[Buffer]:
    """The stored file of the plain bytes `chunks`, to be written as `path` of a store. Holds one chunk in memory."""
    header = _MAGIC + os.urandom(HEADER_BYTES - len(_MAGIC))
    cipher, authenticated = _file_cipher(key, header), header + path.encode()
    yield header
    buffer, index = bytearray(), 0
    for chunk in chunks:
        rest = memoryview(chunk).cast("B")
        while rest:
            # Only when more follows is a full chunk known not to be the last.
            if len(buffer) == CHUNK_BYTES:
                yield cipher.encrypt(_nonce(index, is_last=False), bytes(buffer), authenticated)
                buffer.clear()
                index += 1
            taken = CHUNK_BYTES - len(buffer)
            buffer += rest[:taken]
            rest = rest[taken:]
    yield cipher.encrypt(_nonce(index, is_last=True), bytes(buffer), authenticated)


class SealedFile:
    """Range reads of plain bytes from one stored file, 8 MiB at a time. Not for several threads."""

    def __init__(self, store: Store, path: str, stored_bytes: int, key: Key) -> None:
        """`stored_bytes` is the size that was committed. Reads nothing yet."""
        self.plain_bytes = plain_bytes(stored_bytes)
        self._store = store
        self._path = path
        self._stored_bytes = stored_bytes
        self._key = key
        self._last = max(0, -(-self.plain_bytes // CHUNK_BYTES) - 1)
        self._opened: tuple[AESGCM, bytes] | None = None
        self._held: tuple[int, bytes] | None = None

    def read_range(self, offset: int, count: int, out: memoryview) -> None:
        """Plain bytes [offset, offset + count) into `out`. CheckpointError where they were tampered with."""
        if offset + count > self.plain_bytes:
            raise CheckpointError(
                f"{self._store.where(self._path)} is damaged: it ends at byte {self.plain_bytes} of its plain text, "
                f"{offset + count} bytes are needed"
            )
        done = 0
        while done < count:
            first = (offset + done) // CHUNK_BYTES
            last = min((offset + count - 1) // CHUNK_BYTES, first + CHUNKS_PER_READ - 1)
            for index, plain in self._chunks(first, last):
                begin = offset + done - index * CHUNK_BYTES
                part = memoryview(plain)[begin : begin + count - done]
                out[done : done + len(part)] = part
                done += len(part)

    def release(self) -> None:
        """Give up the chunk that is held because the next read may begin in it."""
        self._held = None

    def _chunks(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        if self._held is not None and self._held[0] == first:
            yield self._held
            first += 1
        if first > last:
            return
        step = CHUNK_BYTES + TAG_BYTES
        begin = HEADER_BYTES + first * step
        data = self._store.read_range(
            self._path, begin, min(HEADER_BYTES + (last + 1) * step, self._stored_bytes) - begin
        )
        for index in range(first, last + 1):
            start = (index - first) * step
            self._held = index, self._decrypted(index, data[start : start + step])
            yield self._held

    def _decrypted(self, index: int, data: memoryview) -> bytes:
        cipher, authenticated = self._cipher()
        try:
            return cipher.decrypt(_nonce(index, is_last=index == self._last), data, authenticated)
        except InvalidTag:
            raise CheckpointError(
                f"{self._store.where(self._path)} is damaged: chunk {index} of {self._last + 1} is not what was "
                "encrypted here"
            ) from None

    def _cipher(self) -> tuple[AESGCM, bytes]:
        if self._opened is None:
            header = bytes(self._store.read_range(self._path, 0, HEADER_BYTES))
            if not header.startswith(_MAGIC):
                raise CheckpointError(f"{self._store.where(self._path)} is damaged: it does not begin as encrypted")
            self._opened = _file_cipher(self._key, header), header + self._path.encode()
        return self._opened


def _file_cipher(key: Key, header: bytes) -> AESGCM:
    salt = header[len(_MAGIC) :]
    return AESGCM(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=_INFO).derive(key.secret))


def _nonce(index: int, *, is_last: bool) -> bytes:
    return index.to_bytes(11, "big") + bytes([is_last])
