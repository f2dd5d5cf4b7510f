"""The key that payloads are encrypted with: where it comes from, and how it is recognised without being shown."""

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import CheckpointKeyError

KEY_VARIABLE = "PHALANX_CHECKPOINT_KEY"
KEY_BYTES = 32
_MAKE_ONE = "make one with: openssl rand -base64 32"


@dataclass(frozen=True, slots=True)
class Key:
    """32 secret bytes; they never appear in its repr."""

    secret: bytes = field(repr=False)

    @property
    def check(self) -> str:
        """16 hexadecimal digits that tell keys apart and say nothing about them."""
        return hmac.new(self.secret, b"phalanx checkpoint key check", hashlib.sha256).hexdigest()[:16]


def find_key(key_file: str | None) -> Key | None:
    """From `key_file`, else from the environment; None where neither is given. Raises CheckpointKeyError."""
    if key_file is not None:
        try:
            return _parse(Path(key_file).expanduser().read_bytes(), f"checkpoint.key_file={key_file}")
        except OSError as error:
            raise CheckpointKeyError(
                f"checkpoint.key_file={key_file} can't be read: {error.strerror or error}; it must be a file with "
                f"the base64 text of {KEY_BYTES} bytes on every node"
            ) from error
    text = os.environb.get(KEY_VARIABLE.encode())  # bytes: what is no text must not end in a traceback
    return None if text is None else _parse(text, KEY_VARIABLE)


def key_to_write(key_file: str | None) -> Key:
    """The key that new checkpoints are encrypted with. Raises CheckpointKeyError where there is none."""
    key = find_key(key_file)
    if key is None:
        raise CheckpointKeyError(
            f"checkpoint.encrypt=true needs a key: set {KEY_VARIABLE} to the base64 text of {KEY_BYTES} bytes on "
            f"every node, or name a file that holds it with checkpoint.key_file; {_MAKE_ONE}"
        )
    return key


def key_to_read(encryption: Mapping[str, Any], key_file: str | None, where: str) -> Key:
    """The key of the checkpoint `where`, whose marker says `encryption`. Raises CheckpointKeyError."""
    key = find_key(key_file)
    wanted = encryption.get("key_check")
    if key is None:
        raise CheckpointKeyError(
            f"{where} is encrypted; set {KEY_VARIABLE} to its key (the one with check value {wanted}), or name the "
            "key's file with checkpoint.key_file"
        )
    if key.check != wanted:
        raise CheckpointKeyError(
            f"{where} is encrypted with another key: its check value is {wanted}, that of the key given is "
            f"{key.check}; set {KEY_VARIABLE} or checkpoint.key_file to the right one"
        )
    return key


def _parse(data: bytes, source: str) -> Key:
    try:
        secret = base64.b64decode(data.strip(), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) != KEY_BYTES:
        # Neither the text nor what it decodes to is named: a key with a typing error is nearly the key.
        raise CheckpointKeyError(f"{source} is not the base64 text of {KEY_BYTES} bytes; {_MAKE_ONE}")
    return Key(secret)
