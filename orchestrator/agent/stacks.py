"""Where a rank's threads are, written to the rank's own log, while it is stuck and whatever it is stuck in.

The zygote registers faulthandler for DUMP_SIGNAL, so every rank has it from its first instruction on. Its handler is
C and takes no lock, so it works while a thread holds the GIL for ever. A stopped process runs no handler: where
py-spy is installed and may read other processes, it does it from outside.
"""

import faulthandler
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

DUMP_SIGNAL = signal.SIGRTMIN + 7
"""Used by nobody else: SIGUSR1, SIGUSR2 and SIGTERM are taken by schedulers, NCCL and torch."""
THREAD_LINE = re.compile(r"(Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):")
FRAME_LINE = re.compile(r'  File ".*", line (\d+|\?\?\?) in |Extension modules: ')
"""A traceback's own lines have a comma before `in`."""
TOP_FRAMES = 4
UNREACHABLE_STATES = frozenset("TtDZX")
"""The kernel's letters for processes in which no signal handler runs."""
ANSWER_S = 3.0
"""How long a rank may take to begin with its stacks."""
QUIET_S = 0.1
"""And to go on with them."""
POLL_S = 0.01
OUTSIDE_TIMEOUT_S = 10.0


def register() -> None:
    """All threads to standard error: on DUMP_SIGNAL, and where a fatal signal ends it. Children inherit this."""
    faulthandler.register(DUMP_SIGNAL, file=sys.__stderr__.fileno(), all_threads=True)
    faulthandler.enable(file=sys.__stderr__.fileno())


class PrintedStacks:
    """The stacks among the lines that a rank prints; fed by whoever reads its output."""

    def __init__(self) -> None:
        self._heard_s = 0.0
        self._threads: list[list[str]] = []

    def begin(self) -> None:
        """Forget those of an earlier dump."""
        self._threads = []

    def hear(self, line: str) -> bool:
        """Whether the line belongs to a stack."""
        if THREAD_LINE.match(line):
            self._threads.append([line])
        elif not FRAME_LINE.match(line):
            return False
        elif self._threads:
            self._threads[-1].append(line)
        self._heard_s = time.monotonic()
        return True

    @property
    def is_there(self) -> bool:
        return bool(self._threads)

    @property
    def is_complete(self) -> bool:
        """Nothing says which line is the last: none has followed for a moment."""
        return self.is_there and time.monotonic() - self._heard_s > QUIET_S

    def top(self) -> list[str]:
        """The innermost frames of the thread that crashed or took the signal, else of the first thread there was,
        which is printed last."""
        threads = [thread for thread in self._threads if thread[0].startswith("Current")] or self._threads[-1:]
        return threads[0][1 : 1 + TOP_FRAMES] if threads else []


class Dumped(Protocol):
    @property
    def rank(self) -> int: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def stacks(self) -> PrintedStacks: ...


Rank = TypeVar("Rank", bound=Dumped)


def dump(
    ranks: Sequence[Rank], why: str, ask: Callable[[int], None], say: Callable[[Rank, str], None]
) -> dict[int, list[str]]:
    """Every rank's stacks into its log, after a line that says `why`; rank -> its innermost frames.

    `ask(pid)` sends DUMP_SIGNAL, `say(rank, line)` writes into the log of a rank that can't.
    """
    for rank in ranks:
        rank.stacks.begin()
        say(rank, f"stacks of all threads: {why}")
    asked = [rank for rank in ranks if rank.pid is not None and process_state(rank.pid) not in UNREACHABLE_STATES]
    for rank in asked:
        ask(rank.pid or 0)
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline and not all(rank.stacks.is_complete for rank in asked):
        time.sleep(POLL_S)
    for rank in ranks:
        if not rank.stacks.is_there and rank.pid is not None:
            for line in from_outside(rank.pid).splitlines():
                say(rank, line)
    return {rank.rank: rank.stacks.top() for rank in ranks}


def from_outside(pid: int) -> str:
    """The stacks of a process that doesn't answer, by py-spy; else why there are none."""
    program = shutil.which("py-spy", path=sysconfig.get_path("scripts")) or shutil.which("py-spy")
    if program is None:
        return f"no stack of process {pid}: it does not answer; py-spy, where it is installed, could read it"
    command = [program, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=OUTSIDE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no stack of process {pid}: it does not answer, and py-spy neither ({error})"
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return f"no stack of process {pid}: it does not answer, and py-spy can't read it ({reason[0]})"
    return f"process {pid} does not answer; py-spy reads:\n{done.stdout.rstrip()}"


def process_state(pid: int) -> str:
    """The kernel's letter for the process; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
