"""How far a rank is, in a page of memory that it shares with its agent: written without lock or system call.

The agent makes the page (a memfd) and hands it over as a descriptor. It holds 64-bit integers; each is stored whole,
and the position's parts are ordered so that a reader between two stores sees a rank that is younger, never one that
is more still. The page outlives its rank: what a dead one did last can be read.

    0 position: step << 32 | phase << 24 | micro-step       1 collectives entered       2 collectives left
    3 steps done in this attempt    4 nanoseconds of the last one
    8 + 2 * phase: times the phase has ended    9 + 2 * phase: nanoseconds of the last time
"""

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.agent.watchdog import Habits, Phase, Position

PAGE_BYTES = mmap.PAGESIZE
_POSITION, _ENTERED, _LEFT, _STEPS, _STEP_NS, _PHASES = 0, 1, 2, 3, 4, 8
_MAX_MICRO_STEP = (1 << 24) - 1


def create_page(name: str) -> int:
    """Descriptor of a page that says `starting`."""
    descriptor = os.memfd_create(f"phalanx-{name}", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, PAGE_BYTES)
    return descriptor


def _words(descriptor: int, access: int) -> memoryview:
    return memoryview(mmap.mmap(descriptor, PAGE_BYTES, access=access)).cast("q")


class Progress:
    """The rank's side. Written by the training thread, and by whichever thread enters a collective."""

    def __init__(self, descriptor: int) -> None:
        self.waited_ns = 0
        """Time spent in collectives so far."""
        self._words = _words(descriptor, mmap.ACCESS_WRITE)
        self._phase = Phase.starting
        self._since_ns = time.monotonic_ns()
        self._step = 0
        self._step_since_ns = 0

    def begin_step(self, step: int) -> None:
        """`step` steps are done; the next one begins, with its data."""
        self._end_phase()
        self._step, self._step_since_ns = step, self._since_ns
        self._store(Phase.data, 0)

    def end_step(self) -> None:
        """The step's update is made and agreed on."""
        words = self._words
        words[_STEP_NS] = time.monotonic_ns() - self._step_since_ns
        words[_STEPS] += 1

    def enter(self, phase: Phase, micro_step: int = 0) -> None:
        """The phase before has ended; a further micro-step is a further time of the same phase."""
        self._end_phase()
        self._store(phase, micro_step)

    def _end_phase(self) -> None:
        now_ns, index = time.monotonic_ns(), _PHASES + 2 * self._phase
        self._words[index + 1] = now_ns - self._since_ns
        self._words[index] += 1
        self._since_ns = now_ns

    def _store(self, phase: Phase, micro_step: int) -> None:
        self._phase = phase
        self._words[_POSITION] = self._step << 32 | phase << 24 | min(micro_step, _MAX_MICRO_STEP)

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Around whatever waits for the other ranks."""
        started_ns = time.monotonic_ns()
        self._words[_ENTERED] += 1
        try:
            yield
        finally:
            self._words[_LEFT] += 1
            self.waited_ns += time.monotonic_ns() - started_ns


class ProgressReader:
    """The agent's side of one rank's page."""

    def __init__(self, descriptor: int) -> None:
        self._words = _words(descriptor, mmap.ACCESS_READ)
        self._seen = [0] * (len(Phase) + 1)

    def position(self) -> Position:
        words = self._words
        left, entered, packed = words[_LEFT], words[_ENTERED], words[_POSITION]
        phase = Phase(packed >> 24 & 0xFF)
        return Position(packed >> 32, phase, packed & _MAX_MICRO_STEP, entered, left)

    def steps(self) -> int:
        """Done in this attempt."""
        return self._words[_STEPS]

    def teach(self, habits: Habits) -> None:
        """Add what has ended since the last call: of each kind the last one, which is as good as any."""
        words, seen = self._words, self._seen
        for phase in Phase:
            index = _PHASES + 2 * phase
            if words[index] != seen[phase]:
                seen[phase] = words[index]
                habits.add_phase(phase, words[index + 1] / 1e9)
        if words[_STEPS] != seen[-1]:
            steps, seen[-1] = words[_STEPS] - seen[-1], words[_STEPS]
            habits.add_step(words[_STEP_NS] / 1e9, steps)
