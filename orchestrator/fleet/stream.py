"""What agents say, over Ray."""

from collections.abc import Sequence
from typing import Any

from orchestrator.errors import SupersededError
from orchestrator.fleet.members import AgentHandle
from orchestrator.fleet.raylib import import_ray
from orchestrator.fleet.renewals import Renewals

LONG_POLL_S = 10.0


class EventStream:
    """Long polls of every agent, one outstanding each."""

    def __init__(self, agents: Sequence[AgentHandle], generation: int, renewals: Renewals) -> None:
        self._generation = generation
        self._renewals = renewals
        self._polls: dict[Any, AgentHandle] = {}
        for agent in agents:
            self.add(agent)

    def add(self, agent: AgentHandle) -> None:
        self._polls[agent.actor.command.remote(self._generation, "next_events", LONG_POLL_S)] = agent

    def poll(self, timeout_s: float) -> tuple[list[dict[str, Any]], list[AgentHandle]]:
        """(events, agents found dead or silent) within `timeout_s`; returns as soon as there is anything.

        Raises SupersededError where a newer driver has the run.
        """
        ray = import_ray()
        if self._renewals.superseded is not None:
            raise self._renewals.superseded
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
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, SupersededError):
                    raise error.cause from None
                dead.append(agent)
            except ray.exceptions.RayError:
                dead.append(agent)
        for reference, agent in list(self._polls.items()):
            if self._renewals.is_silent(agent):
                del self._polls[reference]
                dead.append(agent)
        return events, dead
