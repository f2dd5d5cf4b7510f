"""What agents say, over Ray."""

import itertools
from collections.abc import Sequence
from typing import Any

from orchestrator.errors import SupersededError
from orchestrator.fleet.members import AgentHandle
from orchestrator.fleet.raylib import import_ray
from orchestrator.fleet.renewals import Renewals

LONG_POLL_S = 10.0
CATCH_UP_S = 30.0


class EventStream:
    """Long polls of every agent, one outstanding each."""

    def __init__(self, agents: Sequence[AgentHandle], generation: int, renewals: Renewals) -> None:
        self._generation = generation
        self._renewals = renewals
        self._polls: dict[Any, AgentHandle] = {}
        self._marks = itertools.count(1)
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

    def catch_up(self) -> tuple[list[dict[str, Any]], list[AgentHandle]]:
        """See members.Events. Ray may bring the answer to a later call before what was said earlier: so each agent is
        asked for a mark behind all that it has to say."""
        awaited = {next(self._marks): agent for agent in self._polls.values()}
        for mark, agent in awaited.items():
            agent.actor.command.remote(self._generation, "mark", mark)
        events: list[dict[str, Any]] = []
        dead: list[AgentHandle] = []
        while awaited:
            said, lost = self.poll(CATCH_UP_S)
            marks = {event["mark"] for event in said if event["kind"] == "mark"}
            awaited = {m: agent for m, agent in awaited.items() if m not in marks and agent not in lost}
            events += (event for event in said if event["kind"] != "mark")
            dead += lost
            if not said and not lost:  # who says nothing is found lost in time
                break
        return events, dead
