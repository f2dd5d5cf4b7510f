"""Carries a schedule out on a run of real processes, and says what is wrong with what came of it."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from comparing import learned
from hooks.sitecustomize import LEAVE_SIGNAL, RAISE_SIGNAL
from left_behind import is_alive
from moments import IN_STEP, LiveRank, hold, hold_in, let_go
from schedules import AT_STARTS, STEPS, Fault, How, Schedule, Victim
from typed import POLL_S, Driver, Run, Typist, wait_for

from launch.prove_digest import final_digest

TOO_LATE_STEP = STEPS - 5
"""A moment that has not come by then is not waited for any longer."""
LEARNED_STEPS = 4
"""After so many steps of an attempt its watchdog knows how long one takes."""
SIGNALS = {
    How.kill: signal.SIGKILL,
    How.crash: signal.SIGSEGV,
    How.leave: LEAVE_SIGNAL,
    How.error: RAISE_SIGNAL,
}


@dataclass(frozen=True, slots=True)
class Struck:
    fault: Fault
    where: str
    """What the rank was seen to be doing."""
    is_inside: bool
    """It was the moment that was asked for."""

    def __str__(self) -> str:
        return f"{self.fault}: {'' if self.is_inside else 'MISSED, struck '}at {self.where}"


@dataclass
class Outcome:
    schedule: Schedule
    struck: list[Struck] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [f"seed {self.schedule.seed}, ZeRO-{self.schedule.zero_stage}, {self.seconds:.0f} s"]
        return "\n  ".join([*lines, *map(str, self.struck), *(f"WRONG: {problem}" for problem in self.problems)])


class Striker:
    """One schedule, on one run, whose command is typed again where its driver is killed."""

    def __init__(self, schedule: Schedule, typist: Typist, run: Run, words: Sequence[str]) -> None:
        self.outcome = Outcome(schedule)
        self.seen: dict[int, psutil.Process] = {}
        """Every process of the run that was seen."""
        self._typist = typist
        self._run = run
        self._words = words
        self._agents: set[int] = set()
        self._struck: set[int] = set()
        """Ranks of attempts that have been struck."""
        self._driver = self._type()

    def carry_out(self) -> Outcome:
        """To the run's end, whatever that is."""
        begun = time.monotonic()
        for fault in self.outcome.schedule.faults:
            struck = self._wait_and_strike(fault)
            if struck is None:
                self.outcome.problems.append(f"the run ended before: {fault}")
                break
            self.outcome.struck.append(struck)
        self._next_rank(0)  # so that the last attempt's processes are known
        code = self._driver.wait()
        if code:
            self.outcome.problems.append(f"exit code {code}: {self._driver.output}{self._driver.error_output}")
        self.outcome.seconds = time.monotonic() - begun
        return self.outcome

    def _type(self) -> Driver:
        driver = self._typist.train(self._run, *self._words)
        self._see(driver.process.pid)
        return driver

    def _see(self, pid: int) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.seen.setdefault(pid, psutil.Process(pid))

    def _next_rank(self, rank: int) -> LiveRank | None:
        """The rank in an attempt that was not struck; None where the run ends before there is one."""
        while self._driver.process.poll() is None:
            for pid in self._rank_pids(rank):
                found = LiveRank(pid, rank, self._run)
                if pid not in self._struck and found.seen() is not None:
                    self._see(pid)
                    self._see_parents(pid)
                    return found
            time.sleep(POLL_S)
        return None

    def _rank_pids(self, rank: int) -> list[int]:
        """Of live processes that may be it: what the zygotes of known agents have forked; else what the log says."""
        found = self._forked()
        if not found:
            attempt = self._run.newest_attempt()
            pid = self._run.rank_pid(attempt, rank) if attempt else None
            found = [pid] if pid is not None and is_alive(pid) else []
        return found

    def _forked(self) -> list[int]:
        return [pid for agent in self._agents for zygote in children_of(agent) for pid in children_of(zygote)]

    def _see_parents(self, rank_pid: int) -> None:
        for victim, parent in parents_of(rank_pid).items():
            self.seen.setdefault(parent.pid, parent)
            if victim is Victim.agent:
                self._agents.add(parent.pid)

    def _wait_and_strike(self, fault: Fault) -> Struck | None:
        while (rank := self._next_rank(fault.rank)) is not None:
            if self._hold(fault, rank):
                seen = rank.seen()
                where = "its end" if seen is None else f"step {seen.position.step}, {seen.position.phase.name}"
                struck = Struck(fault, where, rank.is_in(fault.moment))
                ranks = {rank.pid, *self._forked()}
                if self._strike(fault, rank):
                    self._struck |= ranks
                    return struck
            time.sleep(POLL_S)
        return None

    def _hold(self, fault: Fault, rank: LiveRank) -> bool:
        """Hold the rank in the fault's moment, or afterwards where that did not come; False where it has ended."""

        def is_past() -> bool:
            seen = rank.seen()
            if seen is None:
                return not rank.is_alive
            return seen.steps > 0 if fault.moment in AT_STARTS else seen.position.step >= TOO_LATE_STEP

        if fault.moment in AT_STARTS:
            return hold_in(rank, fault.moment, lambda: True, is_past) or hold(rank.pid)
        while (seen := rank.seen()) is None or seen.position.step < fault.step or seen.steps < LEARNED_STEPS:
            if not rank.is_alive:
                return False
            time.sleep(POLL_S)

        def is_right() -> bool:
            """A stopped rank is found early only where it is known how long it usually takes."""
            seen = rank.seen()
            return fault.how is not How.stop or (seen is not None and seen.position.phase in IN_STEP)

        is_inside = hold_in(rank, fault.moment, is_right, is_past)
        return is_inside or hold_in(rank, None, is_right, lambda: not rank.is_alive)

    def _strike(self, fault: Fault, rank: LiveRank) -> bool:
        """False where the victim is gone already; the rank is let go then."""
        if fault.victim is Victim.driver:
            self._strike_driver(fault, rank)
            return True
        if fault.victim is Victim.rank:
            pid = rank.pid
        else:
            parents = parents_of(rank.pid)
            if not parents:
                let_go(rank.pid)
                return False
            pid = parents[fault.victim].pid
        if fault.how is How.stop:
            return True
        os.kill(pid, SIGNALS[fault.how])
        let_go(rank.pid)
        return True

    def _strike_driver(self, fault: Fault, rank: LiveRank) -> None:
        process = self._driver.process
        if fault.how is How.stop:
            os.kill(process.pid, signal.SIGSTOP)
            let_go(rank.pid)
            hold_in(rank, None, lambda: is_late(rank), lambda: not rank.is_alive)  # it may outrun its lease
            wait_for("the end of the ranks without a lease", lambda: not rank.is_alive)
            os.kill(process.pid, signal.SIGCONT)
            return
        process.kill()
        let_go(rank.pid)
        process.wait()
        self._driver = self._type()


def is_late(rank: LiveRank) -> bool:
    seen = rank.seen()
    return seen is not None and seen.position.step >= TOO_LATE_STEP


def children_of(pid: int) -> list[int]:
    """Of any of its threads."""
    found: list[str] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += path.read_text().split()
    return [int(word) for word in found]


def parents_of(rank_pid: int) -> dict[Victim, psutil.Process]:
    """The rank's zygote and agent; nothing where they are gone."""
    try:
        zygote = psutil.Process(rank_pid).parent()
        agent = zygote.parent() if zygote else None
        if zygote is None or agent is None or "orchestrator.agent.zygote" not in zygote.cmdline():
            return {}
    except psutil.NoSuchProcess:
        return {}
    return {Victim.zygote: zygote, Victim.agent: agent}


def differences(run: Run, reference: Run, reference_digest: str, *, is_finished: bool = True) -> list[str]:
    """What of `run` is not as in the undisturbed run, to the last bit."""
    found = []
    ours, theirs = run.rows(), reference.rows()
    if list(ours) != list(theirs):
        found.append(f"{len(ours)} steps, not the {len(theirs)} of the undisturbed run")
    wrong = [step for step, row in theirs.items() if step in ours and learned(ours[step]) != learned(row)]
    if wrong:
        found.append(f"step {wrong[0]} is another one: {learned(ours[wrong[0]])}, not {learned(theirs[wrong[0]])}")
    if (digest := final_digest(run.folder)) != reference_digest:
        found.append(f"the last checkpoint is another one: {digest}, not {reference_digest}")
    if len(run.events("run_finished")) != is_finished:
        found.append(f"it is written down as finished {len(run.events('run_finished'))} times")
    return found
