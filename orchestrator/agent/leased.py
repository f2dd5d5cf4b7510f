"""An agent under a lease: it outlives its driver for a while, and obeys the newest driver only.

A driver is known by its generation, the number of the first attempt that it claimed: no two drivers of a run have the
same, and a later one has a higher one. Every call carries it, and is a renewal of the lease.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from orchestrator.agent.agent import NodeAgent
from orchestrator.agent.lease import Lease, LeaseTerms, Verdict
from orchestrator.errors import SupersededError

LOOKS_PER_TIMEOUT = 10
MAX_INTERVAL_S = 1.0
STOP_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 1800.0
"""For what is on its way to storage when no driver came: the ranks are gone, but a store that does not answer must
not keep the node reserved for good."""


class LeasedAgent:
    """Any thread may call."""

    def __init__(
        self,
        agent: NodeAgent,
        generation: int,
        terms: LeaseTerms,
        facts: dict[str, Any],
        on_end: Callable[[], None],
        *,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        """`facts` are for the driver that adopts it: what it was made for. `on_end` is called when everything is
        released because no driver came, or could not be released in `close_timeout_s`."""
        self._agent = agent
        self._generation = generation
        self._facts = facts
        self._lease = Lease(terms)
        self._on_end = on_end
        self._close_timeout_s = close_timeout_s
        self._has_lapsed = False
        self._obeying = threading.Lock()
        """Whoever holds it decides whether ranks may live: a lapse is over before the next driver's word counts."""
        self._closing = threading.Event()
        threading.Thread(target=self._watch, name="lease", daemon=True).start()

    def renew(self, generation: int) -> None:
        """Raises SupersededError where a newer driver has this agent."""
        with self._obeying:
            if self._closing.is_set():
                raise ConnectionError("this agent has ended: no driver came in fault.driver_grace_s")
            if generation != self._generation:
                raise SupersededError(
                    f"this driver ({_name(generation)}) may not go on: {_name(self._generation)} has taken the run "
                    "over; nothing was damaged, and the run goes on there"
                )
            self._lease.renew()
            self._has_lapsed = False

    def command(self, generation: int, method: str, *arguments: object) -> Any:
        """Call a method of the agent for the driver of this generation."""
        self.renew(generation)
        return getattr(self._agent, method)(*arguments)

    def adopt(self, generation: int, terms: LeaseTerms) -> dict[str, Any]:
        """From here on this driver is obeyed, and none before it. What the agent is and was doing.

        Raises SupersededError where a newer one has it.
        """
        with self._obeying:
            self._generation = max(generation, self._generation)
            self._lease.terms = terms
        self.renew(generation)
        self._agent.tell_again()
        return self.describe(generation)

    def describe(self, generation: int) -> dict[str, Any]:
        self.renew(generation)
        return {**self._facts, **self._agent.describe(), "attempt": self._agent.attempt_facts}

    def close(self, generation: int) -> None:
        """End what the agent has started and hold no lease any more."""
        self.renew(generation)
        self._closing.set()
        self._agent.close()

    def _watch(self) -> None:
        interval_s = min(MAX_INTERVAL_S, self._lease.terms.timeout_s / LOOKS_PER_TIMEOUT)
        looked_s = time.monotonic()
        while not self._closing.wait(interval_s):
            now_s = time.monotonic()
            verdict = self._look(now_s - looked_s, interval_s)
            looked_s = now_s
            if verdict is Verdict.ended:
                closing = threading.Thread(target=self._agent.close, name="close", daemon=True)
                closing.start()
                closing.join(self._close_timeout_s)
                self._on_end()

    def _look(self, elapsed_s: float, interval_s: float) -> Verdict:
        with self._obeying:
            verdict = self._lease.look(elapsed_s, interval_s)
            if verdict is Verdict.lapsed and not self._has_lapsed:
                self._has_lapsed = True
                why = f"its node heard nothing from the driver for {self._lease.silent_s:.1f} s and stopped it"
                self._agent.stop_ranks(STOP_TIMEOUT_S, f"{why} (fault.lease_timeout_s)")
            if verdict is Verdict.ended:
                self._closing.set()
        return verdict


def _name(generation: int) -> str:
    return f"the one that began with attempt {generation}"
