"""The agent's watchdog: looks at its ranks' pages a few times a second and says `stalled` where `judge` says hang.

One watch for each attempt, so that what is normal is learned anew. It only tells; the controller, which hears all
nodes, decides. Waiting for a CPU is read from /proc/PID/task/TID/schedstat (nanoseconds in the run queue).
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from orchestrator.agent.stacks import process_state
from orchestrator.agent.watchdog import Habits, HangLimits, RankProgress, Stillness, judge
from orchestrator.rank.progress import ProgressReader

MIN_INTERVAL_S, MAX_INTERVAL_S = 0.05, 1.0
LOOKS_PER_LIMIT = 40


class Member(Protocol):
    """A rank as its agent knows it."""

    @property
    def rank(self) -> int: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def is_gone(self) -> bool: ...
    @property
    def reader(self) -> ProgressReader: ...


class _Watched:
    def __init__(self, member: Member) -> None:
        self.member = member
        self.stillness = Stillness()
        self._queued_s: dict[str, float] = {}
        """Thread -> seconds that it has waited for a CPU in its life."""

    def look(self, elapsed_s: float, interval_s: float) -> None:
        position = self.member.reader.position()
        is_still = position == self.stillness.position
        starved_s = self._starved_s() if is_still else 0.0
        self.stillness.look(position, elapsed_s=elapsed_s, interval_s=interval_s, starved_s=starved_s)

    def _starved_s(self) -> float:
        """What the thread that waited longest has waited since the last call that found it."""
        if self.member.pid is None:
            return 0.0
        before, self._queued_s = self._queued_s, queued_s(self.member.pid)
        return max((waited - before.get(thread, waited) for thread, waited in self._queued_s.items()), default=0.0)


class Watch:
    """From the start of an attempt's ranks to `stop`."""

    def __init__(
        self, node: int, members: Sequence[Member], limits: HangLimits, on_stalled: Callable[[int], None]
    ) -> None:
        """`on_stalled(rank)` is called from the watch's thread, each time that ranks have stood still for a limit."""
        self._node = node
        self._ranks = [_Watched(member) for member in members]
        self._habits = Habits(limits)
        self._on_stalled = on_stalled
        self._told_s = 0.0
        self._ended = threading.Event()
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def progress(self) -> list[RankProgress]:
        """Of every live rank, as at the last look."""
        with self._looking:
            return [self._progress_of(rank) for rank in self._living()]

    def _living(self) -> list[_Watched]:
        return [rank for rank in self._ranks if not rank.member.is_gone]

    def _progress_of(self, rank: _Watched) -> RankProgress:
        member = rank.member
        position = rank.stillness.position or member.reader.position()
        return RankProgress(
            rank=member.rank,
            node=self._node,
            position=position,
            still_s=rank.stillness.seconds,
            limit_s=self._habits.limit_s(position.phase),
            usual_s=self._habits.usual_s(position.phase),
            process_state="" if member.pid is None else process_state(member.pid),
        )

    def _work(self) -> None:
        interval_s, looked_s = MIN_INTERVAL_S, time.monotonic()
        while not self._ended.wait(interval_s):
            now_s = time.monotonic()
            with self._looking:
                living = self._living()
                for rank in living:
                    rank.member.reader.teach(self._habits)
                    rank.look(now_s - looked_s, interval_s)
            if not living:
                return
            looked_s = now_s
            still_s, limit_s = self._longest()
            interval_s = min(MAX_INTERVAL_S, max(MIN_INTERVAL_S, limit_s / LOOKS_PER_LIMIT))
            if still_s <= limit_s:
                self._told_s = 0.0
            elif still_s >= self._told_s + limit_s:
                self._tell(still_s)

    def _longest(self) -> tuple[float, float]:
        """(seconds, limit) of the rank that is nearest to its limit, or furthest beyond."""
        pairs = [
            (rank.stillness.seconds, self._habits.limit_s(rank.stillness.position.phase))
            for rank in self._living()
            if rank.stillness.position is not None
        ]
        return max(pairs, key=lambda pair: pair[0] - pair[1], default=(0.0, MIN_INTERVAL_S))

    def _tell(self, still_s: float) -> None:
        hang = judge(self.progress())
        if hang is not None:
            self._told_s = still_s
            self._on_stalled(hang.first.rank)


def queued_s(pid: int) -> dict[str, float]:
    """Thread -> seconds in the run queue without a CPU; empty where the kernel doesn't count them."""
    found = {}
    folder = f"/proc/{pid}/task"
    try:
        for thread in os.listdir(folder):  # noqa: PTH208
            with open(f"{folder}/{thread}/schedstat") as file:  # noqa: PTH123
                found[thread] = int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):  # the process or a thread has just ended
        return found
    return found
