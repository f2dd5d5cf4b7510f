"""A run's nodes in Ray: a reservation on each and an agent in it; lost ones are replaced, one by one."""

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from orchestrator.config import ClusterConfig
from orchestrator.control.inheritance import Inherited
from orchestrator.errors import PlacementError, SupersededError
from orchestrator.fleet.coming import ComingAgent
from orchestrator.fleet.detached import AgentActor, describe, end_actor, layout_of, take_over
from orchestrator.fleet.members import AgentHandle, Replaced
from orchestrator.fleet.raylib import available_resources, import_ray, node_names
from orchestrator.fleet.reserving import LOOK_S, Reservation, ask_for, ask_for_all, not_freed, rooms_for
from orchestrator.fleet.tenancy import Tenancy
from orchestrator.placement import may_go_on, remaining
from orchestrator.spec import Placement

START_TRIES = 3
SHUN_S = 120.0
"""A node that fell silent, or where no agent came up, is asked for again after so long: Ray has found out by then, or
it is well."""


class Gang:
    def __init__(
        self,
        config: ClusterConfig,
        tenancy: Tenancy,
        placement: Placement,
        *,
        is_warm: bool,
        threads: int,
        zygote_ahead: str | None = None,
        avoided: Callable[[], frozenset[str]],
        has_notice: Callable[[], bool],
    ) -> None:
        """`zygote_ahead`: of this machine, for the first node's agent. `avoided`: names of nodes that are taken only
        where no others have room. `has_notice`: the run was told to stop, so nothing is waited for any more."""
        self.agents: list[AgentHandle] = []
        """Live ones, in the placement's order."""
        self.inherited: list[Inherited] = []
        """What the agents of an earlier driver said last."""
        self._config = config
        self._tenancy = tenancy
        self._placement = placement
        self._layout = layout_of(placement, is_warm=is_warm, threads=threads)
        self._zygote_ahead = zygote_ahead
        self._avoided = avoided
        self._has_notice = has_notice
        self._is_choosy = True
        """Whether nodes to be avoided, or that fell silent, are not asked for."""
        self._names: dict[str, str] = {}
        """Ray's id of a node -> its name."""
        self._serials = itertools.count(1)
        self._reserved: dict[int, Reservation] = {}
        """By node; those of missing nodes may not be granted yet."""
        self._coming: dict[int, ComingAgent] = {}
        self._shunned: dict[str, float] = {}
        """Ray's id of a node -> since when, monotonic."""

    def start(self) -> None:
        """Reserve the placement's bundles and start one agent in each; waits until all answer.

        Those that an earlier driver has left are taken over where they fit, else ended. Raises PlacementError where
        the nodes don't come free in `cluster.start_timeout_s`, SupersededError where a newer driver has the run.
        Where those that are taken over are enough, others are not waited for so long, nor needed.
        """
        estate = take_over(self._tenancy, self._layout, self._config)
        self.inherited, self._reserved = estate.inherited, estate.reserved
        self.agents = list(map(self._named, estate.agents))
        limit_s, patience_s = self._config.start_timeout_s, self._config.replace_timeout_s
        if not self.agents:
            patience_s = self._ask_for_all(limit_s, patience_s)
        found = {agent.node for agent in self.agents}
        is_enough = bool(found) and may_go_on(self._config, remaining(self._placement, found))
        missing = [node for node in range(len(self._placement.bundles)) if node not in found]
        replaced = self._fill(missing, self._config.replace_timeout_s if is_enough else limit_s, patience_s)
        if replaced.problem is not None and not is_enough:
            raise PlacementError(replaced.problem)

    def replace(self, nodes: Sequence[int], wait_s: float, silent: Collection[AgentHandle]) -> Replaced:
        """New agents for `nodes`, whose own are lost; see members.Cluster. `silent`: those that did not die, but say
        nothing: their nodes are left at once. Where an agent has died, its reservation is tried again first."""
        for agent in self.agents:
            if agent.node in nodes:
                with contextlib.suppress(Exception):
                    import_ray().kill(agent.actor)
                if agent in silent:
                    self._leave(agent.node, agent.ray_node)
        self.agents = [agent for agent in self.agents if agent.node not in nodes]
        return self._fill(nodes, wait_s, self._config.replace_timeout_s)

    def _ask_for_all(self, limit_s: float, patience_s: float) -> float:
        """Reserve all bundles; returns how long nodes to be avoided are to be avoided from now on."""
        excluded = self._excluded()
        try:
            wait_s = min(limit_s, patience_s) if excluded else limit_s
            made = ask_for_all(self._placement, self._new_group_name, wait_s, excluded, self._has_notice)
        except PlacementError:
            if not excluded or self._has_notice():
                raise
            made = ask_for_all(self._placement, self._new_group_name, limit_s, has_notice=self._has_notice)
            patience_s = 0.0
        self._reserved = dict(enumerate(made))
        return patience_s

    def has_room(self, nodes: Sequence[int]) -> bool:
        """Whether other nodes have room now for the bundles of `nodes`."""
        bundles = [self._placement.bundles[node] for node in nodes]
        return rooms_for(bundles, available_resources(), self._excluded()) is not None

    def has_replacements(self, nodes: Sequence[int]) -> bool:
        """Whether a new agent is up and warm for any of `nodes`; returns at once, and goes on to ask for them."""
        missing = [node for node in nodes if node not in self._coming]
        self._ask(missing, "command", "warm_up")
        return any(self._is_up(node, []) for node in nodes)

    def release(self) -> None:
        """End the agents and give the reservations back, where they are not a newer driver's."""
        agents, self.agents = self.agents, []
        for coming in self._coming.values():
            coming.end()
        try:
            for agent in agents:
                end_actor(agent.actor, self._tenancy.generation)
        except SupersededError:
            return
        for reservation in self._reserved.values():
            reservation.give_up()

    def _fill(self, nodes: Sequence[int], wait_s: float, patience_s: float) -> Replaced:
        """Until an agent is up for each of `nodes`; nodes are waited for `wait_s`, agents on them start_timeout_s.
        After `patience_s` a node to be avoided is better than none."""
        began_s = time.monotonic()
        until_s = began_s + wait_s
        missing, problems = list(nodes), list[str]()
        while missing and len(problems) < START_TRIES * len(nodes):
            self._is_choosy = time.monotonic() - began_s < patience_s
            self._ask([node for node in missing if node not in self._coming], "describe")
            missing = [node for node in missing if not (self._is_up(node, problems) and self._take(node, problems))]
            waiting = [self._coming[node] for node in missing if node in self._coming]
            if self._has_notice() or (time.monotonic() > until_s and (not waiting or not wait_s)):
                break
            if waiting:
                import_ray().wait([coming.call for coming in waiting], num_returns=len(waiting), timeout=LOOK_S)
            elif asked := [self._reserved[node] for node in missing if node in self._reserved]:
                asked[0].wait(min(LOOK_S, until_s - time.monotonic()))
        self._is_choosy = True
        if not missing:
            return Replaced(self.agents)
        lacking = not_freed([self._placement.bundles[node] for node in missing], wait_s)
        return Replaced(self.agents, problems[-1] if problems else lacking)

    def _ask(self, nodes: Sequence[int], method: str, *arguments: object) -> None:
        """Ask for a reservation for each of `nodes`; where one is granted, start an agent there and call it."""
        excluded = self._excluded() if nodes else frozenset[str]()
        for node in nodes:
            reserved = self._reserved.get(node)
            ray_node = reserved.ray_node() if reserved is not None else None
            if reserved is not None and ray_node is None and reserved.is_removed():
                reserved = None
            if reserved is not None and (ray_node in excluded if ray_node else reserved.excluded != excluded):
                reserved.give_up()
                reserved = None
            if reserved is None:
                bundle = self._placement.bundles[node]
                self._reserved[node] = ask_for(bundle, self._new_group_name(), excluded=excluded)
            elif ray_node is not None:
                actor = self._new_actor(node, reserved)
                call = getattr(actor, method).remote(self._tenancy.generation, *arguments)
                self._coming[node] = ComingAgent(actor, call, ray_node)
                excluded |= {ray_node}

    def _excluded(self) -> frozenset[str]:
        """Nodes that this run is on already, and those to be left alone for now, unless there are no others."""
        now_s = time.monotonic()
        self._shunned = {node: since_s for node, since_s in self._shunned.items() if now_s - since_s < SHUN_S}
        avoided = self._avoided()
        names = node_names() if avoided or self._shunned else {}
        shunned = {node for node, name in names.items() if name in avoided or node in self._shunned}
        ours = {agent.ray_node for agent in self.agents} | {coming.ray_node for coming in self._coming.values()}
        return frozenset(ours | shunned if self._is_choosy and shunned != names.keys() else ours)

    def _is_up(self, node: int, problems: list[str]) -> bool:
        """Whether the agent that is coming for `node` is there; where it has failed, or its node, it is ended."""
        coming = self._coming.get(node)
        if coming is None:
            return False
        try:
            if coming.is_up():
                return True
        except PlacementError as error:
            problems.append(str(error))
        else:
            if time.monotonic() - coming.since_s > self._config.start_timeout_s:
                limit_s = self._config.start_timeout_s
                problems.append(f"an agent did not start in cluster.start_timeout_s={limit_s:g}; see `ray status`")
            elif self._reserved[node].ray_node() == coming.ray_node:
                return False
        coming.end()
        del self._coming[node]
        self._leave(node, coming.ray_node)
        return False

    def _leave(self, node: int, ray_node: str) -> None:
        """Give up the reservation for `node`, and don't ask for that machine for a while."""
        self._shunned[ray_node] = time.monotonic()
        self._reserved.pop(node).give_up()

    def _take(self, node: int, problems: list[str]) -> bool:
        """Whether the agent that has come for `node` is there still: from here on it is one of ours."""
        coming = self._coming.pop(node)
        try:
            agent = self._named(describe(coming.actor, node, self._tenancy.generation, self._config))
        except PlacementError as error:
            problems.append(str(error))
            self._leave(node, coming.ray_node)
            return False
        self.agents = sorted([*self.agents, agent], key=lambda agent: agent.node)
        return True

    def _named(self, agent: AgentHandle) -> AgentHandle:
        """By what Ray calls its node."""
        if agent.ray_node not in self._names:
            self._names = node_names()
        agent.host = self._names.get(agent.ray_node, agent.host)
        return agent

    def _new_actor(self, node: int, reserved: Reservation) -> Any:
        ray = import_ray()
        in_bundle = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        name = self._tenancy.agent_name(node, next(self._serials))
        options = ray.remote(AgentActor).options(
            name=name,
            lifetime="detached",
            num_cpus=self._placement.bundles[node].cpus,
            num_gpus=self._placement.bundles[node].gpus,
            max_concurrency=16,
            max_restarts=0,
            scheduling_strategy=in_bundle(reserved.group, 0),
        )
        ahead = self._zygote_ahead if node == 0 else None
        return options.remote(self._tenancy, name, reserved.name, self._layout, ahead)

    def _new_group_name(self) -> str:
        return self._tenancy.group_name(next(self._serials))
