"""Tries again what may pass: exponential backoff with jitter, bounded in time, ended at once when told to."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.errors import StoreError, StoreFault

Result = TypeVar("Result")

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
SLOW_WAIT_S = 5.0
"""The first wait where only a person or time helps (a full disk, credentials): asking fast changes nothing."""
PASSING = frozenset({StoreFault.busy})
ANY = frozenset(StoreFault)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try, and for which faults; others are raised at once."""

    timeout_s: float
    faults: frozenset[StoreFault] = PASSING


def wait_s(tries: int, fault: StoreFault, jitter: float) -> float:
    """After `tries` failed ones: 0.5 s, 1 s, 2 s, ... 30 s (from 5 s on for what does not pass by itself).

    `jitter` in [0, 1) takes up to half of it away, so that a thousand ranks don't come back at once.
    """
    first_s = FIRST_WAIT_S if fault in PASSING else SLOW_WAIT_S
    return min(LONGEST_WAIT_S, first_s * 2.0 ** min(tries - 1, 20)) * (1 - jitter / 2)


def retried(
    work: Callable[[], Result],
    patience: Patience,
    *,
    pause: Callable[[float], bool],
    on_wait: Callable[[StoreError], None] = lambda error: None,
    started_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """What `work` returns, tried again until it succeeds or `patience` is used up; then its last error is raised.

    `pause(seconds)` waits, and returns True where there is no more time to wait (the process is to end): then the
    next failure is the last. `on_wait(error)` is told before each wait. `started_s`, by `clock`, is where the
    timeout counts from; None is now. At least one try is made.
    """
    deadline_s = (clock() if started_s is None else started_s) + patience.timeout_s
    tries, is_over = 0, False
    while True:
        try:
            return work()
        except StoreError as error:
            tries += 1
            left_s = deadline_s - clock()
            if is_over or error.fault not in patience.faults or left_s <= 0:
                raise
            on_wait(error)
            # Never beyond the deadline: the last try is made when it comes.
            is_over = pause(min(left_s, wait_s(tries, error.fault, random.random())))
