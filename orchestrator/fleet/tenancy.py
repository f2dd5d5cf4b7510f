"""Who a driver is to the agents of its run, and by which names Ray knows them. Plan half."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.agent.lease import LeaseTerms

_AGENT = re.compile(r"(?P<run>.+)/agent-(?P<node>\d{5,})/(?P<generation>\d+)\.(?P<serial>\d+)")


@dataclass(frozen=True, slots=True)
class Tenancy:
    run: str
    """The run's id and a token of its folder: no two runs share it, wherever they are typed."""
    generation: int
    """The first attempt that this driver has claimed: of two drivers of a run, the later one has the higher."""
    terms: LeaseTerms

    def agent_name(self, node: int, serial: int) -> str:
        """`serial` counts the agents and groups that this driver has made."""
        return f"{self.run}/agent-{node:05d}/{self.generation}.{serial}"

    def group_name(self, serial: int) -> str:
        return f"{self.run}/nodes/{self.generation}.{serial}"

    def is_ours(self, name: str) -> bool:
        """Whether an agent or a group of that name is this run's."""
        return is_of_run(name, self.run)


def is_of_run(name: str, run: str) -> bool:
    return name.startswith((f"{run}/agent-", f"{run}/nodes/"))


def node_of(name: str) -> int | None:
    """The node that an agent of that name was made for, None where it is none."""
    match = _AGENT.fullmatch(name)
    return int(match["node"]) if match else None


def newest_agents(names: Iterable[str], run: str) -> tuple[dict[int, str], list[str]]:
    """(node -> its newest agent's name, the names of all others) of the run's agents in `names`."""
    newest: dict[int, tuple[tuple[int, int], str]] = {}
    others = []
    for name in names:
        match = _AGENT.fullmatch(name)
        if match is None or match["run"] != run:
            continue
        node, made = int(match["node"]), (int(match["generation"]), int(match["serial"]))
        if node in newest and newest[node][0] > made:
            others.append(name)
            continue
        if node in newest:
            others.append(newest[node][1])
        newest[node] = made, name
    return {node: name for node, (_, name) in newest.items()}, others
