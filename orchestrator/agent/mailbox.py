"""What an agent has to tell, for one listener at a time: events in order, handed over by long polls."""

import threading
import time
from collections import deque
from typing import Any

Event = dict[str, Any]
BATCHED_KINDS = frozenset({"step", "output"})
"""Events that may wait for company; all others, and an attempt's first step, are handed over at once."""
BATCH_S = 0.1
KEPT_KINDS = frozenset({"step", "step_again", "evaluated", "anomaly"})
"""Events that are kept after they were handed over, because a driver may die before it has written them down."""
KEPT_EVENTS = 1024


class Mailbox:
    """Any thread may call."""

    def __init__(self, batch_s: float = BATCH_S) -> None:
        self._batch_s = batch_s
        self._waiting: deque[Event] = deque()
        self._told: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._changed = threading.Condition()
        self._listener = 0

    def put(self, event: Event) -> None:
        with self._changed:
            self._waiting.append(event)
            if len(self._waiting) == 1 or not _may_wait(event):
                self._changed.notify_all()

    def take(self, timeout_s: float) -> list[Event]:
        """Everything since the last call; waits for the first event, and briefly for company where that may wait.

        Whoever waited here before gets nothing any more.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._listener = listener = self._listener + 1
            self._changed.notify_all()
            while not self._waiting and self._listener == listener and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
            company_until = time.monotonic() + self._batch_s
            while self._listener == listener and all(map(_may_wait, self._waiting)):
                left_s = min(company_until, deadline) - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            if self._listener != listener:
                return []
            events = list(self._waiting)
            self._waiting.clear()
            self._told += (event for event in events if event["kind"] in KEPT_KINDS)
        return events

    def tell_again(self) -> None:
        """For a new listener: what was told last comes once more, then what is waiting; the old one gets nothing."""
        with self._changed:
            self._listener += 1
            self._waiting.extendleft(reversed(self._told))
            self._told.clear()
            self._changed.notify_all()


def _may_wait(event: Event) -> bool:
    """A recovery ends with an attempt's first step, which alone tells what its start took."""
    return event["kind"] in BATCHED_KINDS and "phases_s" not in event
