"""Virtual time: a heap of what will happen, and a commit thread that waits in it. One real thread runs at a time, so
the same seed gives the same course, event by event."""

import heapq
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

EPOCH_S = 1_700_000_000.0
"""Unix seconds at the simulation's start."""
Act = Callable[[], None]


class World:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.clock_jump_s = 0.0
        """What somebody has set the wall clock forward (or back) by."""
        self._heap: list[tuple[float, int, Act]] = []
        self._count = 0

    def at(self, t_s: float, act: Act) -> None:
        """`act` at `t_s`, or now where that has passed; of equal times the one asked for first."""
        self._count += 1
        heapq.heappush(self._heap, (max(t_s, self.now_s), self._count, act))

    def after(self, seconds: float, act: Act) -> None:
        self.at(self.now_s + seconds, act)

    def step(self) -> bool:
        """The next thing happens; False where nothing is to happen any more."""
        if not self._heap:
            return False
        t_s, _, act = heapq.heappop(self._heap)
        self.now_s = max(self.now_s, t_s)
        act()
        return True

    def advance(self, seconds: float) -> None:
        """Somebody is busy for so long; all that is due meanwhile happens."""
        until_s = self.now_s + seconds
        while self._heap and self._heap[0][0] <= until_s:
            self.step()
        self.now_s = max(self.now_s, until_s)


class Abandoned(BaseException):
    """The process was killed amid what it did. Not an Exception: the code under test does not catch it."""


class Background(Executor):
    """The commit thread of one driver: each piece of work takes `work_s`, and may wait in virtual time.

    A real thread that runs only while the simulation waits for it: no other way leaves the code under test as it is.
    """

    def __init__(self, world: World, work_s: float, may_wait: Callable[[], bool]) -> None:
        """`may_wait`: False where the work to come will not `wait`; then it needs no thread."""
        self._may_wait = may_wait
        self._world = world
        self._work_s = work_s
        self._queue: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._waited_for: threading.Event | None = None
        self._is_busy = False
        self.is_abandoned = False
        self._is_ending = False
        self._number = 0
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._has_thread_ended = False
        """It hands over no more, though it may still look alive for a moment."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "_Drained":
        future = _Drained(self)
        self._queue.append((lambda: fn(*args, **kwargs), future))
        if not self._is_busy:
            self._is_busy = True
            self._wake_after(self._work_s)
        return future

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Called by the work: until `event` is set, at most `timeout_s` of virtual time."""
        if not event.is_set():
            self._waited_for = event
            self._wake_after(timeout_s)
            self._hand_over()
            self._waited_for = None
        if self.is_abandoned:
            raise Abandoned
        return event.is_set()

    def drain(self) -> None:
        """All that was submitted is done now; what waits is woken."""
        while self._is_busy:
            self._resume()

    def abandon(self) -> None:
        """The process is killed: nothing more is done."""
        self._queue.clear()
        self.is_abandoned = True
        if self._waited_for is not None:
            self._resume()
        self._end_thread()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.drain()
        self._end_thread()

    def _wake_after(self, seconds: float) -> None:
        self._number += 1
        number = self._number

        def act() -> None:
            if number == self._number and self._is_busy and not self.is_abandoned:
                self._resume()

        self._world.after(seconds, act)

    def _resume(self) -> None:
        """The thread runs until it waits or has nothing more to do at this moment."""
        self._number += 1  # an earlier wake-up is off
        if self._waited_for is None and not self._may_wait():
            self._do_next()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="simulated-commit", daemon=True)
            self._thread.start()
        self._go.release()
        self._back.acquire()

    def _hand_over(self) -> None:
        self._back.release()
        self._go.acquire()

    def _work(self) -> None:
        self._go.acquire()
        while not self._is_ending:
            try:
                self._do_next()
            except Abandoned:
                break
            self._hand_over()
        self._is_busy = False
        self._has_thread_ended = True
        self._back.release()

    def _do_next(self) -> None:
        fn, future = self._queue.popleft()
        try:
            future.set_result(fn())
        except Exception as error:
            future.set_exception(error)
        self._is_busy = bool(self._queue)
        if self._is_busy:
            self._wake_after(self._work_s)

    def _end_thread(self) -> None:
        self._is_ending = True
        if self._thread is not None:
            if not self._has_thread_ended:
                self._go.release()
                self._back.acquire()
            self._thread.join()
        self._thread = None


class _Drained(Future[Any]):
    """To wait for it is to let the thread work."""

    def __init__(self, background: Background) -> None:
        super().__init__()
        self._background = background

    def result(self, timeout: float | None = None) -> Any:
        while not self.done():
            self._background.drain()
        return super().result(timeout)


class DriverClock:
    """What one driver takes for the time."""

    def __init__(self, world: World, background: Background) -> None:
        self._world = world
        self._background = background

    def monotonic(self) -> float:
        return self._world.now_s

    def time(self) -> float:
        return EPOCH_S + self._world.now_s + self._world.clock_jump_s

    def sleep(self, seconds: float) -> None:
        self._world.advance(seconds)
        if self._background.is_abandoned:
            raise Abandoned

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return self._background.wait(event, timeout_s)
