"""What the driver needs of a cluster: its agents, and what they say. Ray is one, a simulation another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.spec import Placement


@dataclass(slots=True)
class AgentHandle:
    """One node's agent, as the driver knows it."""

    actor: Any
    node: int
    host: str
    address: str
    interface: str | None
    port: int
    """Where it takes and gives copies of snapshots."""
    domain: str | None = None
    """Its failure domain, where that is known."""
    ray_node: str = ""
    """Ray's id of its node."""


def host_of(agents: Sequence[AgentHandle], node: int) -> str:
    return next((agent.host for agent in agents if agent.node == node), f"node {node}")


@dataclass(frozen=True, slots=True)
class Replaced:
    """What came of looking for other nodes."""

    agents: list[AgentHandle]
    """All that there are now, in the placement's order."""
    problem: str | None = None
    """Why some are missing still; None where none is."""


class Events(Protocol):
    """What agents say, as it comes."""

    def add(self, agent: AgentHandle) -> None:
        """Hear this one, too."""

    def poll(self, timeout_s: float) -> tuple[list[dict[str, Any]], list[AgentHandle]]:
        """(events, agents found dead) within `timeout_s`; returns as soon as there is anything."""

    def catch_up(self) -> tuple[list[dict[str, Any]], list[AgentHandle]]:
        """(everything that agents have said by now, those found dead meanwhile), also what is still on its way."""


class Cluster(Protocol):
    def start_agents(self, placement: Placement, *, is_warm: bool, threads: int) -> list[AgentHandle]: ...

    def replace_agents(self, placement: Placement, nodes: Sequence[int], wait_s: float) -> Replaced:
        """New agents in place of those of `nodes`, which are lost; the others, and the snapshots they hold, stay.
        Other nodes are waited for `wait_s`; with 0 only agents that are up already are taken."""

    def has_room(self, placement: Placement, nodes: Sequence[int]) -> bool:
        """Whether there is room now, on other nodes than the run is on, for the bundles of `nodes`."""

    def has_replacements(self, placement: Placement, nodes: Sequence[int]) -> bool:
        """Whether `replace_agents` would find an agent that is up, for one of `nodes` at least. Begins to start them;
        returns at once."""

    def call_all(self, calls: Sequence[tuple[AgentHandle, tuple[object, ...]]], method: str) -> list[Any]:
        """The same method of several agents at once, each with its own arguments; results in order.

        Raises ConnectionError where an agent is gone, SupersededError where a newer driver has them.
        """

    def call_living(
        self, agents: Sequence[AgentHandle], method: str, *arguments: object, timeout_s: float | None = None
    ) -> list[Any]:
        """The same method of several agents at once; the results of those that are there and answer in time.

        Raises SupersededError where a newer driver has them.
        """

    def events(self) -> Events: ...


def call(cluster: Cluster, agent: AgentHandle, method: str, *arguments: object) -> Any:
    """One agent's answer; see `Cluster.call_all`."""
    (answer,) = cluster.call_all([(agent, arguments)], method)
    return answer
