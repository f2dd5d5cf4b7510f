"""Signals by which a run is asked to leave."""

import signal

NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""The first one drains the run (save at a step boundary, exit 75), a second one ends it at once."""


class Notices:
    """Counts SIGTERM, SIGUSR1 and SIGINT while the run goes on; a handler only counts."""

    def __init__(self) -> None:
        self._count = 0

    def __enter__(self) -> "Notices":
        self._before = {number: signal.getsignal(number) for number in NOTICES}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> int:
        return self._count

    def listen(self) -> None:
        """Call again after Ray has started: it puts a SIGTERM handler of its own in our place, which aborts."""
        for number in NOTICES:
            signal.signal(number, self._add)

    def _add(self, *_: object) -> None:
        self._count += 1
