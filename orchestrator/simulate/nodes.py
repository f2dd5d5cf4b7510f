"""Fake nodes with their agents, and the cluster that a driver calls: the methods of NodeAgent, in virtual time."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.agent.watchdog import RankProgress
from orchestrator.checkpoint.slots import Share, is_kept
from orchestrator.errors import CheckpointError
from orchestrator.fleet.members import AgentHandle, Replaced
from orchestrator.simulate.costs import Costs
from orchestrator.simulate.trained import Trained
from orchestrator.simulate.training import Message, Training
from orchestrator.simulate.world import Abandoned, World
from orchestrator.spec import Placement

Snapshots = dict[Share, dict[int, Trained]]
"""Whose -> step -> what was sealed."""


@dataclass(eq=False, slots=True)
class Node:
    """One host: it lives until it is lost, and its memory with it."""

    host: str
    index: int
    """In the placement."""
    is_alive: bool = True
    is_told: bool = False
    """The driver has been told that it is gone."""
    ranks: list[int] = field(default_factory=list)
    """Live ones."""
    own: Snapshots = field(default_factory=dict)
    copies: Snapshots = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)
    """Ranks whose next restore finds that its snapshot does not match its checksum."""
    peer: "Node | None" = None
    stuck: set[int] = field(default_factory=set)
    secret: str = ""


class FakeCluster:
    """What one driver sees: its nodes, which are lost and replaced. Virtual time passes in its calls."""

    def __init__(
        self, world: World, costs: Costs, name: str, start: Callable[["FakeCluster", Message], Training]
    ) -> None:
        """`start(cluster, common spec)` begins the training of an attempt, once all nodes have forked its ranks."""
        self.nodes: list[Node] = []
        """By their place."""
        self.training: Training | None = None
        self.has_spares = True
        self.on_stop: list[Callable[[], None]] = []
        """Called once, when ranks are stopped next: a recovery has begun."""
        self.violations: list[str] = []
        self._world = world
        self._costs = costs
        self._name = name
        self._start = start
        self._made = 0
        self._is_over = False
        self._started: tuple[int, int] = (0, 0)
        """An attempt, and how many of its ranks are forked."""
        self._messages: list[Message] = []
        self._dead: list[AgentHandle] = []
        self._agents: list[AgentHandle] = []
        self._by_address: dict[tuple[str, int], Node] = {}

    # ---- what the driver calls (members.Cluster)

    def start_agents(self, placement: Placement, *, is_warm: bool, threads: int) -> list[AgentHandle]:
        self._pass(self._costs.agent_s)
        self._agents = [self._new_agent(index) for index in placement.nodes]
        self.nodes = [agent.actor for agent in self._agents]
        return list(self._agents)

    def replace_agents(self, placement: Placement, nodes: Sequence[int], wait_s: float) -> Replaced:
        self._pass(self._costs.place_s)
        places = set(nodes)
        kept = [agent for agent in self._agents if agent.node not in places]
        for agent in self._agents:
            if agent.node in places:  # lost, or left
                agent.actor.is_alive, agent.actor.is_told = False, True
        if not self.has_spares:
            return Replaced(kept, "the cluster has not freed nodes in cluster.start_timeout_s")
        self._pass(self._costs.agent_s)
        made = [self._new_agent(place) for place in sorted(places)]
        self._agents = sorted([*kept, *made], key=lambda agent: agent.node)
        self.nodes = [agent.actor for agent in self._agents]
        return Replaced(list(self._agents))

    def has_room(self, placement: Placement, nodes: Sequence[int]) -> bool:
        return self.has_spares

    def has_replacements(self, placement: Placement, nodes: Sequence[int]) -> bool:
        return self.has_spares

    def call_all(self, calls: Sequence[tuple[AgentHandle, tuple[object, ...]]], method: str) -> list[Any]:
        answer: Callable[..., Any] = getattr(self, f"_on_{method}")
        self._pass(self._costs.call_s + self._takes_s(method, calls))
        answers = [answer(agent.actor, *arguments) if agent.actor.is_alive else None for agent, arguments in calls]
        silent = self._wait_until_told([agent for agent, _ in calls])
        if silent:
            raise ConnectionError(f"an agent is gone: {silent[0].host}")
        return answers

    def call_living(
        self, agents: Sequence[AgentHandle], method: str, *arguments: object, timeout_s: float | None = None
    ) -> list[Any]:
        answer: Callable[..., Any] = getattr(self, f"_on_{method}")
        self._pass(self._costs.call_s + self._takes_s(method, agents))
        answers = [answer(agent.actor, *arguments) for agent in agents if agent.actor.is_alive]
        self._wait_until_told(agents)
        return answers

    def _wait_until_told(self, agents: Sequence[AgentHandle]) -> list[AgentHandle]:
        """A call to a lost node returns when the cluster has noticed; the lost ones."""
        silent = [agent for agent in agents if not agent.actor.is_alive]
        while not all(agent.actor.is_told for agent in silent):
            self._pass(self._costs.node_death_s)
        return silent

    def events(self) -> "FakeEvents":
        return FakeEvents(self)

    def take(self) -> tuple[list[Message], list[AgentHandle]]:
        messages, self._messages = self._messages, []
        dead, self._dead = self._dead, []
        return messages, dead

    # ---- what agents do

    def _on_set_peer(self, node: Node, secret: str, peer: tuple[str, int] | None) -> None:
        node.secret = secret
        node.peer = None if peer is None else self._by_address[peer]

    def _on_check_cuda_fork(self, node: Node) -> None:
        return None

    def _on_sealed_steps(self, node: Node) -> dict[Share, list[int]]:
        return {share: sorted(steps) for share, steps in node.own.items()}

    def _on_copied_steps(self, node: Node) -> dict[Share, list[int]]:
        return {share: sorted(steps) for share, steps in node.copies.items()}

    def _on_keep_snapshots(
        self, node: Node, step: int | None, world_size: int, attempt: int, is_resized: bool
    ) -> None:
        for snapshots in (node.own, node.copies):
            for held in snapshots.values():
                for other in [s for s in held if not is_kept(s, step, is_resized=is_resized)]:
                    del held[other]

    def _on_adopt_copies(self, node: Node, secret: str, copies: Sequence[tuple[Share, int, tuple[str, int]]]) -> None:
        for share, step, address in copies:
            peer = self._by_address[address]
            if not peer.is_alive:
                raise CheckpointError(f"peer {address[0]} can't be reached")
            if secret != peer.secret or step not in peer.copies.get(share, {}):
                raise CheckpointError(f"no copy of rank {share.rank} at step {step}")
            node.own[share] = {step: peer.copies[share][step]}

    def _on_start_store(self, node: Node) -> int:
        return 29_500

    def _on_start_ranks(self, node: Node, attempt: int, common: Message, own: Sequence[Message], *_: object) -> None:
        if node.ranks:
            self.violations.append(f"{node.host} was told to start attempt {attempt} while ranks of it live")
        node.ranks = [part["rank"] for part in own]
        node.stuck.clear()
        self._started = attempt, len(own) + (self._started[1] if self._started[0] == attempt else 0)
        if self._started[1] == common["world_size"]:
            self.training = self._start(self, common)

    def _on_stop_ranks(self, node: Node, timeout_s: float) -> bool:
        if self.training is not None:
            self.halt()
            self.training = None
            waiting, self.on_stop = self.on_stop, []
            for act in waiting:
                act()
        node.ranks = []
        return True

    def _on_leave(self, node: Node, how: str) -> None:
        if self.training is not None:
            self.training.drain()

    def _on_progress(self, node: Node) -> list[RankProgress]:
        training = self.training
        if training is None:
            return []
        limit_s = 3 * training.step_s + 5
        return [training.progress_of(rank, node.index, rank in node.stuck, limit_s) for rank in node.ranks]

    def _on_dump_stacks(self, node: Node, why: str) -> dict[int, list[str]]:
        return {}

    # ---- what happens to them

    def emit(self, message: Message) -> None:
        self._messages.append(message)

    def emit_of_ranks(self, message: Message, nodes: Sequence[Node] | None = None) -> None:
        """The same from every live rank."""
        for node in self.nodes if nodes is None else nodes:
            if node.is_alive:
                self._messages += [{**message, "rank": rank, "node": node.index} for rank in node.ranks]

    def halt(self) -> None:
        """One rank stands still or is dead, so all do; what was sealed and copied stays in the agents' memory."""
        training = self.training
        if training is None or training.is_halted:
            return
        training.halt()
        sealed = {step: training.state_at(step) for step in training.sealed_steps()}
        copied = {step: training.state_at(step) for step in training.copied_steps()}
        for node in self.nodes:
            for rank in node.ranks:
                share = Share(training.world_size, rank)
                node.own[share] = _newest(node.own.get(share, {}) | sealed)
                if node.peer is not None:
                    node.peer.copies[share] = _newest(node.peer.copies.get(share, {}) | copied)

    def lose(self, node: Node) -> None:
        """The host is gone; the driver is told when the cluster has noticed."""
        if not node.is_alive:
            return
        self.halt()
        node.is_alive = False
        node.ranks = []
        node.own, node.copies = {}, {}
        agent = next(agent for agent in self._agents if agent.actor is node)

        def tell() -> None:
            node.is_told = True
            self._dead.append(agent)

        self._world.after(self._costs.node_death_s, tell)

    def end(self) -> None:
        """The driver is gone or has let go: its agents end, with all they hold."""
        if self.training is not None:
            self.training.halt()
            self.training = None
        self._is_over = True
        for node in self.nodes:
            node.is_alive = False

    def _pass(self, seconds: float) -> None:
        """The driver waits; where it is killed meanwhile, it does nothing more."""
        self._world.advance(seconds)
        if self._is_over:
            raise Abandoned

    def _new_agent(self, place: int) -> AgentHandle:
        self._made += 1
        node = Node(f"{self._name}-{self._made:05d}", place)
        agent = AgentHandle(node, place, node.host, node.host, None, self._made)
        self._by_address[agent.address, agent.port] = node
        return agent

    def _takes_s(self, method: str, calls: Sequence[object]) -> float:
        costs = self._costs
        takes = defaultdict(float, stop_ranks=costs.stop_s, adopt_copies=costs.fetch_s if calls else 0.0)
        return takes[method]


class FakeEvents:
    """The driver is told at once, and never waits: time passes elsewhere."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    def add(self, agent: AgentHandle) -> None:
        """A new agent's words come with the others'."""

    def poll(self, timeout_s: float) -> tuple[list[Message], list[AgentHandle]]:
        return self._cluster.take()

    def catch_up(self) -> tuple[list[Message], list[AgentHandle]]:
        return self._cluster.take()


def _newest(held: dict[int, Trained]) -> dict[int, Trained]:
    return {step: held[step] for step in sorted(held)[-2:]}
