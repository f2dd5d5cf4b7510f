"""Makes a live process slow: it is stopped and let go again many times a second."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PULSE_S = 0.015


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """Stopped half of the time."""
    is_over = threading.Event()

    def pulse() -> None:
        with suppress(ProcessLookupError):  # it has ended
            while not is_over.is_set():
                os.kill(pid, signal.SIGSTOP)
                is_over.wait(PULSE_S)
                os.kill(pid, signal.SIGCONT)
                is_over.wait(PULSE_S)

    thread = threading.Thread(target=pulse)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
