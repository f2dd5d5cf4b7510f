"""Commits in the background: a slow or failing store never makes the controller deaf."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from orchestrator.agent.persist import Committed
from orchestrator.checkpoint.layout import MARKER, step_folder
from orchestrator.checkpoint.retry import ANY, Patience, retried
from orchestrator.checkpoint.store import Store
from orchestrator.control.attempt import Attempt, Message
from orchestrator.control.clock import Clock
from orchestrator.errors import CheckpointError, StoreError

MAX_PENDING = 8
"""Checkpoints that may wait for their marker: where the store takes files and no marker, more are left out."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a checkpoint that all ranks have written; with neither, it goes on being tried."""

    attempt: Attempt
    step: int
    messages: Sequence[Message]
    committed: Committed | None = None
    error: CheckpointError | None = None
    delayed_by: StoreError | None = None

    @property
    def is_last(self) -> bool:
        """Whether the run waits for it."""
        return any(message["is_last"] for message in self.messages)


class Commits:
    """One thread, so that commits keep their order. Its methods are for the controller's thread only."""

    def __init__(self, store: Store, clock: Clock, background: Executor | None = None) -> None:
        """`background` does one thing at a time; None: a thread."""
        self._clock = clock
        self._store = store
        self._outcomes: deque[Outcome] = deque()
        self._is_hurried = threading.Event()
        self._pending: set[int] = set()
        self._background = background or ThreadPoolExecutor(1, thread_name_prefix="commit")

    def begin(
        self,
        attempt: Attempt,
        step: int,
        messages: Sequence[Message],
        save: Callable[[], Committed],
        patience: Patience,
    ) -> None:
        """Call `save`, and again where the store fails, from now on as long as `patience` says; see `finished`."""
        self._pending.add(step)
        begun_s = self._clock.monotonic()

        def work() -> None:
            told: list[StoreError] = []

            def on_wait(error: StoreError) -> None:
                if not told:
                    told.append(error)
                    self._outcomes.append(Outcome(attempt, step, messages, delayed_by=error))

            try:
                how = {"pause": self._pause, "on_wait": on_wait, "clock": self._clock.monotonic}
                committed = retried(save, patience, started_s=begun_s, **how)
                self._outcomes.append(Outcome(attempt, step, messages, committed=committed))
            except CheckpointError as error:
                self._outcomes.append(Outcome(attempt, step, messages, error=error))
            except Exception as error:  # whatever it is: the run's end waits for what became of it
                bug = CheckpointError(f"the checkpoint can't be committed ({error!r}): a bug in phalanx")
                self._outcomes.append(Outcome(attempt, step, messages, error=bug))

        self._background.submit(work)

    def _pause(self, seconds: float) -> bool:
        return self._clock.wait(self._is_hurried, seconds)

    def discard(self, step: int, files: Sequence[str]) -> None:
        """Take away what some ranks wrote of a checkpoint that others could not: it would only fill the store."""
        folder = step_folder(step)

        def work() -> None:
            try:
                if not self._store.exists(f"{folder}/{MARKER}"):
                    for file in files:
                        self._store.remove(f"{folder}/{file}")
            except StoreError:
                return  # it does not answer: retention of a later attempt takes them away

        self._background.submit(work)

    @property
    def is_backlogged(self) -> bool:
        return len(self._pending) >= MAX_PENDING

    def is_pending(self, step: int) -> bool:
        return step in self._pending

    def finished(self) -> list[Outcome]:
        """What has come since the last call."""
        outcomes = []
        while self._outcomes:
            outcomes.append(self._outcomes.popleft())
            if outcomes[-1].delayed_by is None:
                self._pending.discard(outcomes[-1].step)
        return outcomes

    def settle(self) -> None:
        """Until nothing is under way: what fails now is not tried again."""
        self._is_hurried.set()
        self._background.submit(lambda: None).result()
        self._is_hurried.clear()

    def close(self) -> None:
        self._is_hurried.set()
        self._background.shutdown(wait=True)


def patience_for(*, is_last: bool, retry_timeout_s: float, final_timeout_s: float) -> Patience:
    """The last checkpoint of a run waits for any cure, the others for what passes by itself."""
    return Patience(final_timeout_s, ANY) if is_last else Patience(retry_timeout_s)
