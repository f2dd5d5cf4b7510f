"""Nodes that a run leaves, and leaves alone while others have room: they gave wrong bits, were lost again and again
or, if asked for, were slow for long. bad_nodes.txt has them, for later drivers and jobs, and people to forget."""

from collections import Counter
from collections.abc import Sequence

from orchestrator.config import FaultConfig
from orchestrator.control.anomalies import Anomaly
from orchestrator.control.attempt import Attempt
from orchestrator.control.badnodes import add_bad_nodes, avoided
from orchestrator.control.clock import Clock
from orchestrator.fleet.fleet import Fleet
from orchestrator.fleet.members import AgentHandle
from orchestrator.runfolder import RunFolder

LOOK_S = 2.0


class Avoidance:
    def __init__(self, folder: RunFolder, fault: FaultConfig, fleet: Fleet, clock: Clock) -> None:
        self._folder = folder
        self._fault = fault
        self._fleet = fleet
        self._clock = clock
        self._losses: Counter[str] = Counter()
        self._leaving: list[AgentHandle] = []
        self._why = ""
        self._next_look_s = 0.0

    def lost(self, hosts: Sequence[str]) -> None:
        """Nodes were lost; one that is so again and again is written down."""
        self._losses.update(hosts)
        limit = self._fault.avoid_after_losses
        self._write({host: f"lost {limit} times" for host in hosts if limit and self._losses[host] == limit})

    def wrong(self, anomaly: Anomaly) -> None:
        """Where the ranks are known that hold other bits than most, their nodes are left if that can be."""
        agents = self._fleet.agents_of(anomaly.ranks)
        self._write({agent.host: anomaly.message for agent in agents})
        if agents and self._fleet.may_leave(agents):
            self._leaving, self._why = agents, anomaly.message

    def is_time_to_leave(self, attempt: Attempt | None) -> bool:
        """Whether a rank has been slow for long and its node can be left: all ranks are to pause then. Ask often."""
        straggler = attempt.straggler_watch.persistent if attempt is not None else None
        now_s = self._clock.monotonic()
        if straggler is None or now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + LOOK_S
        agents = self._fleet.agents_of([straggler.rank])
        if not self._fleet.may_leave(agents):
            return False
        self._leaving, self._why = agents, f"rank {straggler.rank} {straggler.message()}"
        self._write({agent.host: self._why for agent in agents})
        return True

    def take_leaving(self) -> tuple[list[AgentHandle], str]:
        """The nodes to leave now that no rank runs, and why."""
        leaving, self._leaving = self._leaving, []
        return [agent for agent in leaving if agent in self._fleet.agents], self._why

    def _write(self, reasons: dict[str, str]) -> None:
        known = avoided(self._folder)
        new = {host: reason for host, reason in reasons.items() if host not in known}
        add_bad_nodes(self._folder, new, self._clock.time())
