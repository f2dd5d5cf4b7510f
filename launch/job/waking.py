"""Signals as bytes in a pipe, so that one `select` waits for them and for everything else."""

import os
import selectors
import signal
from collections.abc import Iterable
from typing import Any


class Wakeup:
    """Use as a context manager in the main thread; the given signals then no longer end the process."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers

    def __enter__(self) -> "Wakeup":
        self._reader, self._writer = os.pipe()
        for descriptor in (self._reader, self._writer):
            os.set_blocking(descriptor, False)
        self._previous_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, lambda *_: None) for number in self._numbers}
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, others: Iterable[Any], timeout_s: float | None) -> list[signal.Signals]:
        """Until a signal comes, one of `others` can be read, or the time is over; the signals that came."""
        with selectors.DefaultSelector() as selector:
            for source in (self._reader, *others):
                selector.register(source, selectors.EVENT_READ)
            selector.select(timeout_s)
        try:
            return [signal.Signals(number) for number in os.read(self._reader, 4096)]
        except BlockingIOError:
            return []
