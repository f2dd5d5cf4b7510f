"""The agents of one run as the driver knows them: where they are, what they are asked, which of them are lost.

The controller decides; this is how it reaches the nodes.
"""

import contextlib
import secrets
from collections import deque
from collections.abc import Iterator, Sequence

from orchestrator.config import WorkerStart
from orchestrator.control.attempt import Message
from orchestrator.control.chronicle import Chronicle
from orchestrator.control.disktier import DiskTier
from orchestrator.control.domains import domain_problems
from orchestrator.control.opening import OpenRun
from orchestrator.control.specs import agent_settings, has_peers
from orchestrator.control.standbyworld import STANDBY_KINDS, StandbyWorld
from orchestrator.errors import CheckpointError, PlacementError
from orchestrator.fleet.members import AgentHandle, Cluster, Events, host_of
from orchestrator.fleet.starting import (
    cuda_fork_problems,
    memory_point,
    prepare_standbys,
    set_peers,
    start_ranks,
)
from orchestrator.placement import may_go_on, remaining
from orchestrator.rank.shares import WantedShares
from orchestrator.spec import Placement, ResumePoint

STOP_TIMEOUT_S = 60.0


class Fleet:
    def __init__(self, run: OpenRun, cluster: Cluster, chronicle: Chronicle, disks: DiskTier | None = None) -> None:
        self.agents: list[AgentHandle] = []
        """In the placement's order, without those that are lost."""
        self._run = run
        self._cluster = cluster
        self._chronicle = chronicle
        self._disks = disks
        self._secret = secrets.token_hex(32)
        """By which the agents know each other."""
        self._whole: Placement | None = None
        """Of all workers that are asked for."""
        self._num_nodes = 0
        self._untried: list[AgentHandle] = []
        """Those of which it is not known whether ranks can be forked there."""
        self._has_lost = False
        """Since other nodes were last looked for."""
        self._placement: Placement | None = None
        """Of those that there are."""
        self._shares: WantedShares | None = None
        """Where the snapshots of the former world are that the next attempt starts from."""
        self._stream: Events | None = None
        self._unheard = deque[Message]()
        self._dead: list[AgentHandle] = []
        """Found so, and not taken yet."""
        self._standbys: StandbyWorld | None = None
        """Ranks that stand by for the next attempt."""

    @property
    def placement(self) -> Placement:
        assert self._placement is not None
        return self._placement

    def host_of_rank(self, rank: int) -> str:
        return host_of(self.agents, self.placement.ranks[rank].node)

    def start(self, placement: Placement) -> list[AgentHandle]:
        """Reserve the nodes and start an agent on each, which are returned; their zygotes warm up in the background.

        Raises PlacementError where the nodes don't come free in time.
        """
        self._whole, self._num_nodes = placement, len(placement.nodes)
        self.agents = list(self._cluster.start_agents(placement, **agent_settings(self._run.config)))
        self._placement = remaining(placement, {agent.node for agent in self.agents})
        self._untried = list(self.agents)
        self._stream = self._cluster.events()
        return self.agents

    def replace_lost(self) -> None:
        """New agents in place of lost ones; the others stay, and so do the snapshots that they hold.

        Where nodes for them don't come in time, it is those that are left, if they are enough; else this raises
        PlacementError. Where none was lost since, but some have come, they are taken, and no others waited for.
        """
        assert self._stream is not None
        assert self._whole is not None
        cluster, present = self._run.config.cluster, {agent.node for agent in self.agents}
        is_enough = bool(present) and may_go_on(cluster, remaining(self._whole, present))
        wait_s = cluster.replace_timeout_s if is_enough else cluster.start_timeout_s
        if is_enough and not self._has_lost:
            wait_s = 0.0
        if self._missing:
            replaced = self._cluster.replace_agents(self._whole, self._missing, wait_s)
            self._has_lost = False
            for agent in replaced.agents:
                if agent.node not in present:
                    self._stream.add(agent)
                    self._untried.append(agent)
            self.agents = list(replaced.agents)
            self._placement = remaining(self._whole, {agent.node for agent in self.agents})
            if replaced.problem is not None and not (self.agents and may_go_on(cluster, self._placement)):
                raise PlacementError(replaced.problem)

    @property
    def _missing(self) -> list[int]:
        """Nodes of the whole placement whose agents are lost and not replaced."""
        assert self._whole is not None
        present = {agent.node for agent in self.agents}
        return [node for node in self._whole.nodes if node not in present]

    @property
    def is_short(self) -> bool:
        """Whether it goes on without lost nodes."""
        return len(self.agents) < self._num_nodes  # asked at every poll: no walk over all ranks

    def has_replacements(self) -> bool:
        """Whether a new agent is up in place of a missing one; returns at once, so ask again."""
        assert self._whole is not None
        return self._cluster.has_replacements(self._whole, self._missing)

    def may_leave(self, agents: Sequence[AgentHandle]) -> bool:
        """Whether the run can go on without these nodes: others have room, or fewer workers are enough."""
        assert self._whole is not None
        gone = {agent.node for agent in agents}
        rest = remaining(self._whole, {agent.node for agent in self.agents} - gone)
        if rest.ranks and may_go_on(self._run.config.cluster, rest):
            return True
        return self._cluster.has_room(self._whole, sorted(gone))

    def agents_of(self, ranks: Sequence[int]) -> list[AgentHandle]:
        """The agents of these ranks' nodes."""
        nodes = {self.placement.ranks[rank].node for rank in ranks}
        return [agent for agent in self.agents if agent.node in nodes]

    def introduce(self) -> None:
        """Make the agents known to each other. Raises ConnectionError where one is lost meanwhile."""
        if has_peers(self._run.config, len(self.agents)):
            set_peers(self._cluster, self.agents, self._secret)
            domains = [agent.domain for agent in self.agents]
            for problem in domain_problems([a.host for a in self.agents], domains, self._run.config.cluster):
                self._chronicle.console.warn(problem)
        if self._disks is not None:
            self._disks.open(self.agents, self._secret, is_private=self._run.config.checkpoint.encrypt)
        if self._run.plan.device == "cuda" and self._run.config.worker.start is WorkerStart.fork:
            untried = {agent.node for agent in self._untried}
            for problem in cuda_fork_problems(self._cluster, [a for a in self.agents if a.node in untried]):
                self._chronicle.console.warn(problem)
        self._untried = []

    def hear(self, timeout_s: float) -> Iterator[Message]:
        """What is told within `timeout_s`, one by one.

        What is told together, and which agents are found dead with it, is known together: whoever stops ranks because
        of the first of it hears the rest, and takes the dead, before the next attempt begins.
        """
        assert self._stream is not None
        self._note(*self._stream.poll(timeout_s))
        while self._unheard:
            yield self._unheard.popleft()

    def _note(self, events: Sequence[Message], dead: Sequence[AgentHandle]) -> None:
        self._dead += dead
        for event in events:
            if self._standbys is not None:
                self._standbys.hear(event)
        self._unheard += (event for event in events if event["kind"] not in STANDBY_KINDS)

    def take_dead(self) -> list[AgentHandle]:
        """Agents found dead, of those that it still counts on."""
        dead, self._dead = self._dead, []
        return [agent for agent in dead if agent in self.agents]

    def lose(self, agent: AgentHandle, *, is_left: bool = False) -> list[int]:
        """The ranks that end with this agent. Until `replace_lost` it is missing. `is_left`: it lives, and is left on
        purpose: another node is waited for only if there is one."""
        assert self._whole is not None
        self.agents.remove(agent)
        self._has_lost = self._has_lost or not is_left or self._cluster.has_room(self._whole, [agent.node])
        self._standbys = None
        return [place.rank for place in self.placement.ranks if place.node == agent.node]

    def start_ranks(self, number: int, resume: ResumePoint) -> None:
        """Start every rank of attempt `number`; where an agent is gone, the stream tells of it."""
        standbys, self._standbys = self._standbys, None
        standby = standbys.attempt if standbys is not None and standbys.can_begin(resume, self.placement) else None
        with contextlib.suppress(ConnectionError):
            kept = resume.step if resume.is_in_memory else None
            world_size = len(self.placement.ranks)
            what = kept, world_size, number, resume.is_in_memory and resume.world_size not in (None, world_size)
            self._cluster.call_all([(agent, what) for agent in self.agents], "keep_snapshots")
            if self._shares is not None and resume.is_in_memory:
                self._cluster.call_all([(agent, (self._shares,)) for agent in self.agents], "show_shares")
            how = {"number": number, "resume": resume, "secret": self._secret, "standby": standby}
            start_ranks(self._run, self._cluster, self.agents, self.placement, **how)

    def prepare_standbys(self, number: int) -> None:
        """While attempt `number` trains: have ranks forked for the next one, where the run is to have such."""
        if not self._run.config.worker.standby:
            return
        with contextlib.suppress(ConnectionError):
            prepare_standbys(self._run, self._cluster, self.agents, self.placement, number)
            self._standbys = StandbyWorld(number, self.placement)

    def stop_ranks(self) -> None:
        """Stop every rank; what they said last is there to be heard."""
        assert self._stream is not None
        self._cluster.call_living(self.agents, "stop_ranks", STOP_TIMEOUT_S)
        self._note(*self._stream.catch_up())

    def memory(self) -> dict[str, int] | None:
        """Bytes of snapshots and copies on the node that has most of them, and the largest agent's own peak; None
        where an agent is gone."""
        try:
            found = self._cluster.call_all([(agent, ()) for agent in self.agents], "memory")
        except ConnectionError:
            return None
        if not found:
            return None
        return {name: max(of_node[name] for of_node in found) for name in ("bytes", "agent_bytes")}

    def drain(self) -> None:
        """Ask every rank to leave at a step boundary, with a checkpoint in storage."""
        self._cluster.call_living(self.agents, "leave", "drain")

    def pause(self) -> None:
        """Ask every rank to leave at a step boundary, with a snapshot in memory."""
        self._cluster.call_living(self.agents, "leave", "pause")

    def memory_point(
        self, previous: ResumePoint, committed_step: int, max_step: int | None = None
    ) -> ResumePoint | None:
        """The agents' snapshots (up to `max_step`), where they are not older than what is in storage; lost ones come
        from peers. Raises ConnectionError where a node is gone."""
        self._shares = None
        try:
            point = memory_point(self._cluster, self.agents, self.placement, max_step)
            if point is None or point.step < committed_step:
                return None
            fetching = [agent for agent in self.agents if agent.node in point.to_fetch]
            self._cluster.call_all(
                [(agent, (self._secret, point.to_fetch[agent.node])) for agent in fetching], "adopt_copies"
            )
        except CheckpointError:
            return None
        if point.world_size != len(self.placement.ranks):
            holders = tuple(sorted(point.holders.items()))
            self._shares = WantedShares(point.world_size, point.step, holders, self._secret)
        return ResumePoint(
            step=point.step,
            source="peer" if point.is_from_peers or point.to_fetch else "memory",
            world_size=point.world_size,
            is_durable=point.step <= committed_step,
            skipped_windows=previous.skipped_windows,
            branch=previous.branch,
        )

    def reports_of(self, resume: ResumePoint) -> list[Message]:
        """What the ranks of another world had reported of the step that its snapshots are of; empty where that is not
        known of all of them."""
        world_size = resume.world_size
        if world_size is None or world_size == len(self.placement.ranks):
            return []
        with contextlib.suppress(ConnectionError):
            calls: list[tuple[AgentHandle, tuple[object, ...]]] = [
                (agent, (world_size, resume.step)) for agent in self.agents
            ]
            by_rank: dict[int, Message] = {}
            for reports in self._cluster.call_all(calls, "reports"):
                by_rank |= reports
            if len(by_rank) == world_size and all(by_rank.values()):
                return [{**by_rank[rank], "rank": rank} for rank in sorted(by_rank)]
        return []
