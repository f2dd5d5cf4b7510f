"""A rank as its agent holds it: its channel, its page, what it printed last."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.agent.channel import Channel
from orchestrator.agent.stacks import PrintedStacks
from orchestrator.checkpoint.slots import Share
from orchestrator.rank.progress import ProgressReader

TAIL_LINES = 40
KILLED: dict[str, Any] = {
    "exit_code": None,
    "signal": int(signal.SIGKILL),
    "is_stopped": False,
    "reason": "the process that it was forked from has died",
}
"""The end of a rank whose zygote has died."""


@dataclass(slots=True)
class RankHandle:
    attempt: int
    rank: int
    world_size: int
    channel: Channel
    reader: ProgressReader
    threads: list[threading.Thread] = field(default_factory=list)
    pid: int | None = None
    why_stopped: str | None = None
    """Where it was not the controller that had it stopped."""
    is_standby: bool = False
    """It belongs to no attempt yet; `attempt` is the one during which it was forked."""
    is_given_up: bool = False
    """A standby that nobody will use."""
    is_ending: bool = False
    is_gone: bool = False
    """And its `exited` is told."""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    """Without stacks."""
    stacks: PrintedStacks = field(default_factory=PrintedStacks)

    @property
    def share(self) -> Share:
        return Share(self.world_size, self.rank)

    def listen(
        self, hear: Callable[["RankHandle"], None], read_output: Callable[["RankHandle", int], None], output: int
    ) -> None:
        """Start a thread for what it says, and one for what it prints to the pipe `output`."""
        self.threads = [
            threading.Thread(target=hear, args=(self,), daemon=True),
            threading.Thread(target=read_output, args=(self, output), daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def read_output(self, descriptor: int, on_line: Callable[[str], None]) -> None:
        """Until everybody who holds the pipe has closed it."""
        with os.fdopen(descriptor, "r", errors="replace") as output:
            for line in output:
                if not self.stacks.hear(line):
                    self.tail.append(line.rstrip("\n"))
                on_line(line)

    def last_words(self) -> dict[str, list[str]]:
        return {"tail": list(self.tail), "stack": self.stacks.top()}
