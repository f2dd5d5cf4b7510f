"""An agent's zygote: started anew where it has died, and what is forked from it that is no rank."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable

from orchestrator.agent.channel import Channel, Message
from orchestrator.agent.zygotehandle import ZygoteHandle, problem_of_canary
from orchestrator.errors import WorkerFailedError

STORE_TRIES = 3
ANSWER_S = 5.0
"""It answers in milliseconds: one that does not for so long has been stopped, or hangs."""
START_TIMEOUT_S = 300.0
"""The zygote imports everything before it can fork: 6 s where the machine is idle, minutes where it is not."""


class ZygoteKeeper:
    """Any thread may call."""

    def __init__(
        self,
        address: str,
        threads: int,
        *,
        is_warm: bool,
        ahead: str | None,
        on_answer: Callable[[Message], None],
        on_death: Callable[[str], None],
    ) -> None:
        """`is_warm`: it has imported everything before it forks; else each child imports for itself. `ahead`: where
        one listens that was started before. A thread calls `on_answer` for each `forked` and `exited`, and `on_death`
        once nothing that was forked lives any more, with why in words where that is known."""
        self._address = address
        self._threads = threads
        self._is_warm = is_warm
        self._on_answer = on_answer
        self._on_death = on_death
        self._store: tuple[Channel, int] | None = None
        self._why_dead = ""
        """What the last one that died as it started has printed last."""
        self._start(ahead)

    def _start(self, ahead: str | None = None) -> None:
        self._is_ready, self._is_settled = threading.Event(), threading.Event()
        """The latter: it is ready, or has died."""
        self._asked_s: float | None = None
        """Since when an answer to a ping is waited for, monotonic."""
        taken = None if ahead is None else ZygoteHandle.take_over(ahead, self._threads)
        self._zygote = taken or ZygoteHandle.start(self._threads, is_warm=self._is_warm)
        self._hearing = threading.Thread(target=self._hear, args=(self._zygote,), daemon=True)
        self._hearing.start()

    def _hear(self, zygote: ZygoteHandle) -> None:
        while True:
            try:
                answer = zygote.hear()
            except (EOFError, OSError):
                break
            if answer["op"] == "ready":
                self._is_ready.set()
                self._is_settled.set()
            elif answer["op"] == "pong":
                self._asked_s = None
            elif answer["op"] in ("forked", "exited"):
                self._on_answer(answer)
        printed = zygote.wait()
        self._store = None
        is_told = printed and not self._is_ready.is_set()
        self._why_dead = f" as it started: {printed.splitlines()[-1]}" if is_told else ""
        self._on_death(self._why_dead)
        self._is_settled.set()
        if printed:
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                print(printed, file=sys.stderr, flush=True)

    def revive(self) -> None:
        """Start another where the last has died, once all that died with it is told of."""
        if self._zygote.is_gone:
            self._hearing.join()
            self._start()

    def fork(self, entry: str, label: str, descriptors: list[int]) -> None:
        """Hand [channel, output] to a new child; our copies are closed. Raises OSError where the zygote is gone."""
        try:
            self._zygote.send({"op": "fork", "entry": entry, "label": label}, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def start_store(self) -> int:
        """Port of the TCPStore on this node, started if none lives; it outlives attempts.

        Raises WorkerFailedError where it can't be.
        """
        for _ in range(STORE_TRIES):
            self.revive()
            store = self._store
            if store is not None and not store[0].ready():  # after its port it says nothing any more but its end
                return store[1]
            with contextlib.suppress(EOFError, OSError):  # it has died as it started, or its zygote has
                self._store = store = self._new_store()
                return store[1]
        why = f"; what it is forked from has died{self._why_dead}" if self._why_dead else ""
        raise WorkerFailedError(
            f"the rendezvous store on {self._address} died {STORE_TRIES} times as it started{why}"
        )

    def _new_store(self) -> tuple[Channel, int]:
        channel, theirs = Channel.pair()
        self.fork("store", "store", [theirs, os.dup(2)])
        channel.send({"host": self._address})
        if not channel.ready(START_TIMEOUT_S):
            raise WorkerFailedError(f"the rendezvous store on {self._address} did not start in time")
        return channel, channel.receive()["port"]

    def warm_up(self) -> None:
        """Return once the zygote has imported everything, so that the start of ranks need not wait for it. Raises
        WorkerFailedError where it has died of that."""
        self.revive()
        if self._is_settled.wait(START_TIMEOUT_S) and not self._is_ready.is_set():
            raise WorkerFailedError(f"the process that ranks are forked from has died{self._why_dead}")

    def check_cuda_fork(self) -> str | None:
        """A forked canary allocates on the GPU; where it can't, ranks import for themselves from now on. Returns what
        the canary said, None if all is well."""
        self.revive()
        channel, theirs = Channel.pair()
        self.fork("canary", "canary", [theirs, os.dup(2)])
        problem = problem_of_canary(channel)
        if problem is not None:
            self.end()
            self._is_warm = False
            self._start()
        return problem

    def ask(self, what: str, pid: int) -> None:
        """`kill` a child, or have it `dump` its stacks. Where the zygote is gone, so are they."""
        with contextlib.suppress(OSError):
            self._zygote.send({"op": what, "pid": pid})

    def end_if_stuck(self) -> None:
        """Ask often while an answer is waited for: a zygote that had been ready and says nothing any more is killed,
        and with it all that was forked. Whoever waits for the end of a rank can wait for its word no longer."""
        if not self._is_ready.is_set():
            return
        if self._asked_s is None:
            self._asked_s = time.monotonic()
            with contextlib.suppress(OSError):
                self._zygote.send({"op": "ping"})
        elif time.monotonic() - self._asked_s > ANSWER_S and not self._zygote.has_spoken:
            self._zygote.kill()

    def end(self) -> None:
        """End it, and with it all that was forked."""
        self._zygote.end()
        self._hearing.join()
