"""Makes a live process slow, or holds it at a moment: it is stopped and let go again many times a second."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from orchestrator.agent.stacks import process_state

PULSE_S = 0.015
SHORT_PULSE_S = 0.0003


@contextmanager
def held_once(pid: int, is_right: Callable[[], bool]) -> Iterator[None]:
    """Stopped as soon as `is_right`, which is asked while it stands still: it can't outrun who asks."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        while (state := process_state(pid)) != "T":
            assert state not in ("", "Z", "X"), f"process {pid} ended before the moment that was asked for"
        if is_right():
            break
        os.kill(pid, signal.SIGCONT)
        time.sleep(SHORT_PULSE_S)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


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
