"""Agents as detached Ray actors: they and their reservation outlive the driver, and a new one finds them by name."""

import contextlib
import json
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from orchestrator.agent.agent import NodeAgent
from orchestrator.agent.leased import LeasedAgent
from orchestrator.agent.oomkills import outlive_ranks
from orchestrator.config import ClusterConfig
from orchestrator.control.domains import domain_of
from orchestrator.control.inheritance import Inherited
from orchestrator.control.opening import versions
from orchestrator.errors import PlacementError, SupersededError
from orchestrator.fleet.members import AgentHandle
from orchestrator.fleet.raylib import first_line, import_ray
from orchestrator.fleet.reserving import Reservation
from orchestrator.fleet.tenancy import Tenancy, is_of_run, newest_agents, node_of
from orchestrator.spec import Placement

ADOPT_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 60.0
LEAVE_TIMEOUT_S = 60.0
"""How long the last agent of a run waits for the others to end, at most."""
LOOK_S = 0.5


class AgentActor(LeasedAgent):
    """A leased agent in a process of its own: it learns its address from Ray, and ends the process by itself."""

    def __init__(
        self,
        tenancy: Tenancy,
        name: str,
        group: str,
        layout: dict[str, Any],
        zygote_ahead: str | None,
    ) -> None:
        outlive_ranks()  # first: what it starts inherits it
        node = node_of(name)
        assert node is not None
        ray = import_ray()
        address = ray.util.get_node_ip_address()
        agent = NodeAgent(node, address, layout["is_warm"], layout["threads"], zygote_ahead)
        context = ray.get_runtime_context()
        facts = {"ray_node": context.get_node_id(), "labels": context.get_node_labels()}
        facts |= {"group": group, "layout": layout}
        super().__init__(agent, tenancy.generation, tenancy.terms, facts, lambda: leave(tenancy.run, name))


def layout_of(placement: Placement, *, is_warm: bool, threads: int) -> dict[str, Any]:
    """What must be equal for an agent to serve another driver of its run."""
    return {
        "bundles": json.dumps([(bundle.cpus, bundle.gpus) for bundle in placement.bundles]),
        "is_warm": is_warm,
        "threads": threads,
        "version": versions().get("phalanx"),
    }


@dataclass(slots=True)
class Estate:
    """What an earlier driver of the run has left that fits this one's placement."""

    agents: list[AgentHandle] = field(default_factory=list)
    reserved: dict[int, Reservation] = field(default_factory=dict)
    """By node: each agent's."""
    inherited: list[Inherited] = field(default_factory=list)


def take_over(tenancy: Tenancy, layout: dict[str, Any], config: ClusterConfig) -> Estate:
    """Adopt the run's agents where they were made for this `layout`, their ranks stopped; end all that is left else.

    Raises SupersededError where a newer driver has them.
    """
    ray = import_ray()
    newest, stale = newest_agents(ray.util.list_named_actors(), tenancy.run)
    actors = {node: actor for node, name in newest.items() if (actor := _actor(name)) is not None}
    facts = _adopt(actors, tenancy)
    estate = Estate()
    for node, said in facts.items():
        if said["layout"] == layout:
            with contextlib.suppress(ValueError):  # it was removed
                estate.reserved[node] = Reservation(ray.util.get_placement_group(said["group"]), said["group"])
    for node in sorted(actors):
        if node in estate.reserved:
            handle = _handle(actors[node], node, facts[node], config)
            estate.agents.append(handle)
            estate.inherited.append(_last_words(handle, tenancy, facts[node]["attempt"]))
        else:
            end_actor(actors[node], tenancy.generation)
    for actor in filter(None, map(_actor, stale)):
        end_actor(actor, tenancy.generation)
    remove_groups(tenancy.run, but={reserved.name for reserved in estate.reserved.values()})
    return estate


def _actor(name: str) -> Any:
    try:
        return import_ray().get_actor(name)
    except ValueError:  # it has ended since it was listed
        return None


def _adopt(actors: dict[int, Any], tenancy: Tenancy) -> dict[int, dict[str, Any]]:
    """node -> what its agent says; without those that don't answer."""
    ray = import_ray()
    asked = {actor.adopt.remote(tenancy.generation, tenancy.terms): node for node, actor in actors.items()}
    ready = ray.wait(list(asked), num_returns=len(asked), timeout=ADOPT_TIMEOUT_S)[0] if asked else []
    facts = {}
    for reference in ready:
        try:
            facts[asked[reference]] = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SupersededError):
                raise error.cause from None
        except ray.exceptions.RayError:
            continue
    return facts


def _last_words(agent: AgentHandle, tenancy: Tenancy, attempt: dict[str, Any] | None) -> Inherited:
    """Stop its ranks; what they said that no driver may have written down. An agent that is gone, or hangs, says
    nothing."""
    ray = import_ray()
    limit_s = STOP_TIMEOUT_S + ADOPT_TIMEOUT_S
    try:
        ray.get(agent.actor.command.remote(tenancy.generation, "stop_ranks", STOP_TIMEOUT_S), timeout=limit_s)
        events = ray.get(agent.actor.command.remote(tenancy.generation, "next_events", 0.0), timeout=limit_s)
    except ray.exceptions.RayError:
        events = []
    return Inherited(agent.node, attempt, events)


def _handle(actor: Any, node: int, facts: dict[str, Any], config: ClusterConfig) -> AgentHandle:
    return AgentHandle(
        actor,
        node,
        facts["host"],
        facts["address"],
        facts["interface"],
        facts["port"],
        domain_of(facts["host"], facts["labels"], facts["topology"], config),
        facts["ray_node"],
    )


def describe(actor: Any, node: int, generation: int, config: ClusterConfig) -> AgentHandle:
    """A new agent that is up. Raises PlacementError where it is gone again."""
    ray = import_ray()
    try:
        return _handle(actor, node, ray.get(actor.describe.remote(generation), timeout=STOP_TIMEOUT_S), config)
    except ray.exceptions.RayError as error:
        with contextlib.suppress(Exception):
            ray.kill(actor)
        raise PlacementError(f"an agent did not start ({first_line(error)}); see `ray status`") from error


def end_actor(actor: Any, generation: int, timeout_s: float = 5.0) -> None:
    """End an agent, its ranks and its process. Raises SupersededError where it is another driver's by now."""
    ray = import_ray()
    try:
        ray.get(actor.close.remote(generation), timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SupersededError):
            raise error.cause from None
    except ray.exceptions.RayError:
        pass  # it does not answer, or has ended
    with contextlib.suppress(Exception):
        ray.kill(actor)


def remove_groups(run: str, but: set[str] | frozenset[str] = frozenset()) -> None:
    """Give the run's reservations back, apart from those named."""
    util = import_ray().util
    for row in util.placement_group_table().values():
        name = row["name"]
        if is_of_run(name, run) and name not in but and row["state"] != "REMOVED":
            with contextlib.suppress(Exception):
                util.remove_placement_group(util.get_placement_group(name))


def leave(run: str, name: str) -> None:
    """No driver came: this process ends, and the last agent of the run takes the reservation along."""
    end = threading.Timer(LEAVE_TIMEOUT_S, os._exit, (0,))  # where Ray does not answer
    end.daemon = True
    end.start()
    with contextlib.suppress(Exception):
        while others := _others(run, name):
            if min(others) < name:  # that one sees to it
                os._exit(0)
            time.sleep(LOOK_S)
        remove_groups(run)
    os._exit(0)


def _others(run: str, name: str) -> list[str]:
    names = import_ray().util.list_named_actors()
    return [other for other in names if is_of_run(other, run) and other != name]
