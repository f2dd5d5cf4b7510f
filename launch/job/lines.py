"""Objects as lines of JSON over a pipe that is read without blocking: how a job and its node programs talk."""

import json
import os
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]


class LineReader:
    """Whole lines from a descriptor; what is not an object of ours is passed over."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._rest = b""
        self.is_closed = False

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> list[Message]:
        """Everything that is there now; `is_closed` after the last of it."""
        while not self.is_closed:
            try:
                part = os.read(self._descriptor, 65536)
            except BlockingIOError:
                break
            self.is_closed = not part
            self._rest += part
        *lines, self._rest = self._rest.split(b"\n")
        return list(_messages(lines))


def line(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _messages(lines: list[bytes]) -> Iterator[Message]:
    for text in lines:
        try:
            message = json.loads(text)
        except ValueError:
            continue
        if isinstance(message, dict) and "op" in message:
            yield message
