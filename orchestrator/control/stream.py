"""What agents say, over Ray."""

from collections.abc import Sequence
from typing import Any

from orchestrator.control.members import AgentHandle
from orchestrator.control.raylib import import_ray

LONG_POLL_S = 10.0


class EventStream:
    """Long polls of every agent, one outstanding each."""

    def __init__(self, agents: Sequence[AgentHandle]) -> None:
        self._polls: dict[Any, AgentHandle] = {}
        for agent in agents:
            self.add(agent)

    def add(self, agent: AgentHandle) -> None:
        self._polls[agent.actor.next_events.remote(LONG_POLL_S)] = agent

    def poll(self, timeout_s: float) -> tuple[list[dict[str, Any]], list[AgentHandle]]:
        """(events, agents found dead) within `timeout_s`; returns as soon as there is anything."""
        ray = import_ray()
        ready, _ = ray.wait(list(self._polls), num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(list(self._polls), num_returns=len(self._polls), timeout=0)
        events: list[dict[str, Any]] = []
        dead: list[AgentHandle] = []
        for reference in ready:
            agent = self._polls.pop(reference)
            try:
                events.extend(ray.get(reference))
                self.add(agent)
            except ray.exceptions.RayError:
                dead.append(agent)
        return events, dead
