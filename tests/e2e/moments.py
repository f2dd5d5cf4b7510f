"""What a rank is in the midst of, seen from outside: its progress page and its slots, which /proc shows, and the
store of its run. A rank is held (SIGSTOP) while it is looked at: what is seen still holds when the blow comes."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from left_behind import is_alive
from schedules import Moment
from typed import POLL_S, Driver, Run

from orchestrator.agent.stacks import process_state
from orchestrator.agent.watchdog import Phase, Position
from orchestrator.checkpoint.layout import MARKER, attempt_of
from orchestrator.checkpoint.slots import Header, Slot, SlotState
from orchestrator.errors import CheckpointError
from orchestrator.rank.progress import ProgressReader

PULSE_S = 0.0003
"""For which a rank is let go between two looks."""
NEAR_STEPS = 3
"""Before a step that is waited for, a rank is no longer only watched but let on pulse by pulse."""
IN_STEP = frozenset({Phase.data, Phase.compute, Phase.snapshot, Phase.update, Phase.vote})


class Seen(NamedTuple):
    position: Position
    steps: int
    """Done in this attempt."""


@dataclass(frozen=True)
class LiveRank:
    pid: int
    rank: int
    run: Run

    def seen(self) -> Seen | None:
        """None where it has no page yet, or is gone."""
        for descriptor in self._memory(f"phalanx-progress-{self.rank} "):
            reader = ProgressReader(descriptor)
            return Seen(reader.position(), reader.steps())
        return None

    def is_in(self, moment: Moment) -> bool:
        seen = self.seen()
        if seen is None:
            return False
        position, is_starting = seen.position, seen.position.phase is Phase.starting
        is_joined = position.collectives_entered > 0
        match moment:
            case Moment.joining:
                found = is_starting and not is_joined
            case Moment.restoring:
                found = is_starting and (is_joined or bool(self._slot_states()))
            case Moment.prefetch:
                found = seen.steps == 0 and position.phase in (Phase.data, Phase.compute)
            case Moment.all_reduce:
                found = position.is_in_collective and position.phase in IN_STEP
            case Moment.snapshot:
                found = SlotState.writing in self._slot_states()
            case Moment.save:
                found = is_saving(self.run)
        return found

    @property
    def is_alive(self) -> bool:
        return is_alive(self.pid)

    def sealed_steps(self) -> set[int]:
        """Of which it has a whole snapshot in a slot."""
        return {header.step for header in self._slots() if header.state is SlotState.sealed}

    def _slot_states(self) -> list[SlotState]:
        return [header.state for header in self._slots()]

    def _slots(self) -> list[Header]:
        found = []
        for descriptor in self._memory(f"phalanx-rank-{self.rank}-slot-"):
            try:
                found.append(Slot(descriptor).header())
            except CheckpointError:  # not formatted yet
                continue
        return found

    def _memory(self, name: str) -> Iterator[int]:
        """Descriptors of our own, closed again, of its shared memory of that name."""
        try:
            links = list(Path(f"/proc/{self.pid}/fd").iterdir())
        except OSError:
            return
        for link in links:
            try:
                if f"/memfd:{name}" not in os.readlink(link):  # noqa: PTH115 -- not a path
                    continue
                descriptor = os.open(link, os.O_RDONLY)
            except OSError:  # closed meanwhile
                continue
            try:
                yield descriptor
            finally:
                os.close(descriptor)


def is_saving(run: Run) -> bool:
    """Whether files of the newest attempt are in storage, of a step that is not committed."""
    attempt = run.newest_attempt()
    for folder in run.folder.checkpoints.glob("step_*"):
        names = {path.name for path in folder.glob("*")}
        if MARKER not in names and any(attempt_of(name) == attempt for name in names):
            return True
    return False


Ask = Callable[[], bool]


def hold_in(rank: LiveRank, moment: Moment | None, is_right: Ask, is_over: Ask) -> bool:
    """Hold the rank in the midst of `moment` (None: anywhere), where `is_right` too, and leave it held; False where
    it has ended, or `is_over`, before: it is let go then."""
    while not is_over():
        if moment is Moment.save and not rank.is_in(moment):  # it is rare, and long enough
            time.sleep(POLL_S)
            if not rank.is_alive:
                return False
            continue
        if not hold(rank.pid):
            return False
        if (moment is None or rank.is_in(moment)) and is_right():
            return True
        let_go(rank.pid)
        time.sleep(PULSE_S)
    return False


def hold_at_step(driver: Driver, run: Run, rank: int, step: int) -> LiveRank:
    """The newest attempt's rank, held once it has done `step`. So it can't outrun who looks, as it can while a step
    is on its way through the driver into a file. The run goes on when it is let go (SIGCONT) or killed."""

    def newest() -> LiveRank | None:
        pid = run.rank_pid(run.newest_attempt(), rank) if run.newest_attempt() else None
        return LiveRank(pid, rank, run) if pid is not None and is_alive(pid) else None

    def is_held(found: LiveRank) -> bool:
        """False where it has ended before: an earlier driver's, say, that had just died."""

        def has_done(number: int) -> bool:
            seen = found.seen()
            return seen is not None and seen.position.phase is not Phase.starting and seen.position.step >= number

        driver.wait_for(f"a step near {step}", lambda: has_done(step - NEAR_STEPS) or not found.is_alive)
        return hold_in(found, None, lambda: has_done(step), lambda: not found.is_alive)

    def look() -> LiveRank | None:
        found = newest()
        return found if found is not None and is_held(found) else None

    return driver.wait_for(f"step {step} of rank {rank}", look)


def let_go(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return


def hold(pid: int) -> bool:
    """Return once it stands still; False where it has ended."""
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return False
    while (state := process_state(pid)) != "T":
        if state in ("", "Z", "X"):
            return False
    return True
