"""The driver's side of the lease: tells every agent a few times in a lease that it lives, and notes who answers."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.agent.lease import Lease
from orchestrator.control.preemption import Drain
from orchestrator.errors import SupersededError
from orchestrator.fleet.members import AgentHandle
from orchestrator.fleet.raylib import draining_nodes, driver_node, import_ray
from orchestrator.fleet.tenancy import Tenancy

PER_TIMEOUT = 4
MAX_UNANSWERED = 2


class Renewals:
    """From the first agent to `close`, in a thread of its own: the driver may be busy for longer than a lease."""

    def __init__(self, tenancy: Tenancy, agents: Callable[[], Sequence[AgentHandle]]) -> None:
        self.superseded: SupersededError | None = None
        """Set once a newer driver has an agent of this run."""
        self.drain: Drain | None = None
        """Of the first of the run's nodes, the driver's own included, that Ray was told to drain."""
        self._tenancy = tenancy
        self._agents = agents
        self._leases: dict[int, Lease] = {}
        """By identity of the handle: how long it has been silent. One that never answered is still starting."""
        self._unanswered: list[tuple[Any, AgentHandle]] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="renewals", daemon=True)
        self._thread.start()

    def is_silent(self, agent: AgentHandle) -> bool:
        """Whether nothing came from this agent in a lease: its node counts as lost, whatever Ray thinks of it."""
        lease = self._leases.get(id(agent))
        return lease is not None and lease.silent_s >= self._tenancy.terms.timeout_s

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _work(self) -> None:
        interval_s = self._tenancy.terms.timeout_s / PER_TIMEOUT
        looked_s = time.monotonic()
        while not self._closing.is_set():
            agents = list(self._agents())
            until_s = time.monotonic() + interval_s
            with contextlib.suppress(Exception):  # Ray is going away: the calls of the driver itself will tell
                self._send(agents)
                self._hear(until_s)
            with contextlib.suppress(Exception):
                self._see_drains(agents)
            self._closing.wait(until_s - time.monotonic())
            now_s = time.monotonic()
            self._look(agents, now_s - looked_s, interval_s)
            looked_s = now_s

    def _send(self, agents: Sequence[AgentHandle]) -> None:
        for agent in agents:
            if sum(asked is agent for _, asked in self._unanswered) < MAX_UNANSWERED:
                self._unanswered.append((agent.actor.renew.remote(self._tenancy.generation), agent))

    def _see_drains(self, agents: Sequence[AgentHandle]) -> None:
        draining = {} if self.drain else draining_nodes()
        if not draining:
            return
        hosts = {driver_node(): socket.gethostname(), **{agent.ray_node: agent.host for agent in agents}}
        for node in draining.keys() & hosts.keys():
            self.drain = Drain(hosts[node], draining[node] - time.time() if draining[node] else None)

    def _hear(self, until_s: float) -> None:
        ray = import_ray()
        while (left_s := until_s - time.monotonic()) > 0 and not self._closing.is_set():
            if not self._unanswered:
                self._closing.wait(left_s)
                return
            references = [reference for reference, _ in self._unanswered]
            ready = set(ray.wait(references, num_returns=1, timeout=min(left_s, 1.0))[0])
            for reference, agent in self._unanswered:
                if reference in ready:
                    self._hear_one(ray, reference, agent)
            self._unanswered = [asked for asked in self._unanswered if asked[0] not in ready]

    def _hear_one(self, ray: Any, reference: Any, agent: AgentHandle) -> None:
        try:
            ray.get(reference)
            self._leases.setdefault(id(agent), Lease(self._tenancy.terms)).renew()
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SupersededError):
                self.superseded = error.cause
        except ray.exceptions.RayError:
            return  # it is gone, or can't be reached: the stream or the silence tells

    def _look(self, agents: Sequence[AgentHandle], elapsed_s: float, interval_s: float) -> None:
        living = {id(agent) for agent in agents}
        self._leases = {key: lease for key, lease in self._leases.items() if key in living}
        self._unanswered = [asked for asked in self._unanswered if id(asked[1]) in living]
        for lease in self._leases.values():
            lease.look(elapsed_s, interval_s)
