"""What each fault does to the fake nodes, the store and the drivers."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from orchestrator.codec import encode
from orchestrator.control.anomalies import Anomaly, Kind
from orchestrator.errors import StoreFault
from orchestrator.simulate.costs import Costs
from orchestrator.simulate.drivers import Driver
from orchestrator.simulate.faults import Fault
from orchestrator.simulate.files import MemoryFiles
from orchestrator.simulate.invariants import Invariants
from orchestrator.simulate.nodes import FakeCluster, Node
from orchestrator.simulate.training import Message, Training
from orchestrator.simulate.world import EPOCH_S, World

SIGNALS = (7, 9, 11)
"""SIGBUS, SIGKILL, SIGSEGV."""
NO_SPARE = 0.1
"""Of the lost nodes: so many times no other is free."""
AT_ONCE_S = 120.0
"""A node that is lost at the same time may hold up the stop of the others."""
FOLLOW_ON = "DistBackendError: connection closed by peer: remote process exited"


class Target(Protocol):
    """A run in virtual time, as an injector sees it."""

    world: World
    rng: np.random.Generator
    costs: Costs
    files: MemoryFiles
    invariants: Invariants

    @property
    def drivers(self) -> Sequence[Driver]:
        """Live ones, the oldest first."""

    def expect_end(self, driver: Driver, limit_s: float | None = None) -> None:
        """A driver that has got a notice must be gone before long."""

    def type_again(self) -> None:
        """The command is typed although a driver lives."""

    def kill(self, driver: Driver) -> None: ...

    def newest_file(self) -> tuple[int, str] | None:
        """(step, path) of a file of the newest checkpoint."""

    def report(self, cluster: FakeCluster, training: Training, step: int, without: Node | None = None) -> None:
        """Every rank's report of a step; those of a lost node don't arrive."""


class Injector:
    def __init__(self, target: Target) -> None:
        self._target = target
        self._world = target.world
        self._rng = target.rng
        self._costs = target.costs

    def inject(self, fault: Fault) -> bool:
        """False where there is nothing that it could hit at this moment."""
        drivers = self._target.drivers
        if fault in (Fault.disk_full, Fault.store_outage):
            return self._fail_store(StoreFault.full if fault is Fault.disk_full else StoreFault.busy)
        if fault is Fault.clock_jump:
            self._world.clock_jump_s += float(self._rng.uniform(-7200, 7200))
            return True
        if not drivers:
            return False
        driver = drivers[-1]
        return self._hit_driver(driver, fault) if fault in _DRIVERS else self._hit_nodes(driver.cluster, fault)

    def _hit_driver(self, driver: Driver, fault: Fault) -> bool:
        match fault:
            case Fault.wandb_outage:
                driver.tracker.fail()
            case Fault.preemption:
                driver.notices += 1
                self._target.expect_end(driver)
            case Fault.in_leaving:
                self._notice_and_more(driver)
            case Fault.duplicate:
                self._target.type_again()
            case Fault.driver_death:
                self._target.kill(driver)
            case _:  # torn write
                found = self._target.newest_file()
                if found is None:
                    return False
                step, path = found
                self._target.files.tear(path, int(self._rng.integers(0, 20)))
                self._target.invariants.damaged(step)
                self._target.kill(driver)
        return True

    def _notice_and_more(self, driver: Driver) -> None:
        driver.notices += 1
        self._target.expect_end(driver)
        kind = (Fault.host, Fault.memory, Fault.preemption)[int(self._rng.integers(3))]

        def act() -> None:
            if driver.is_gone:
                return
            if kind is Fault.preemption:  # asked twice: now, and not at the boundary
                driver.notices += 1
                self._target.expect_end(driver, AT_ONCE_S)
            else:
                self._hit_now(driver.cluster, kind)

        self._world.after(float(self._rng.uniform(0, 1.5 * self._costs.step_s + self._costs.persist_s)), act)

    def _hit_nodes(self, cluster: FakeCluster, fault: Fault) -> bool:
        if fault is Fault.in_recovery:
            kind = (Fault.host, Fault.memory, Fault.preemption)[int(self._rng.integers(3))]
            delay_s = float(self._rng.uniform(0, 1.5 * (self._costs.start_s + self._costs.agent_s)))

            def hit() -> None:
                owner = next((driver for driver in self._target.drivers if driver.cluster is cluster), None)
                if kind is not Fault.preemption:
                    self._hit_now(cluster, kind)
                elif owner is not None:
                    owner.notices += 1
                    self._target.expect_end(owner)

            cluster.on_stop.append(lambda: self._world.after(delay_s, hit))
            return self._hit_now(cluster, (Fault.memory, Fault.host)[int(self._rng.integers(2))])
        return self._hit_now(cluster, fault)

    def _hit_now(self, cluster: FakeCluster, fault: Fault) -> bool:
        living = [node for node in cluster.nodes if node.is_alive]
        if not living:
            return False
        node = living[int(self._rng.integers(len(living)))]
        luck = float(self._rng.random())
        match fault:
            case Fault.bad_numbers:
                return self._spoil(cluster, luck)
            case Fault.host | Fault.two_nodes:
                if luck < NO_SPARE:
                    self._take_spares(cluster)
                return self._lose(cluster, node, fault is Fault.two_nodes)
            case Fault.network if luck < 0.5:
                return self._lose(cluster, node, False)
            case Fault.gpu if luck < 0.33:
                return self._lose(cluster, node, False)
        return self._hit_rank(cluster, node, fault, luck)

    def _hit_rank(self, cluster: FakeCluster, node: Node, fault: Fault, luck: float) -> bool:
        if not node.ranks or cluster.training is None:
            return False
        rank = node.ranks[int(self._rng.integers(len(node.ranks)))]
        match fault:
            case Fault.slow:
                cluster.training.delay(float(self._rng.uniform(5, 120)))
            case Fault.damaged_snapshot:
                node.damaged.add(rank)
                self._die(cluster, node, rank, {"signal": 9})
            case Fault.memory:
                self._die(cluster, node, rank, {"signal": SIGNALS[int(luck * len(SIGNALS))]})
            case Fault.gpu | Fault.software if luck > 0.75:
                self._hang(cluster, node, rank)
            case Fault.gpu:
                self._raise(cluster, node, rank, "AcceleratorError: CUDA error: uncorrectable ECC error encountered")
            case Fault.network:
                self._raise(cluster, node, rank, "DistBackendError: NCCL watchdog: all_reduce timed out")
            case _ if luck < 0.2:
                self._die(cluster, node, rank, {"exit_code": 0})
            case _:
                self._raise(cluster, node, rank, f"RuntimeError: simulated {int(luck * 1e6)}")
        return True

    def _spoil(self, cluster: FakeCluster, luck: float) -> bool:
        """The step under way comes to NaN, and nothing of it is kept; or the one just done shows that replicas have
        differed for some steps, of which some are kept."""
        training = cluster.training
        if training is None or training.is_halted or not training.has_begun:
            return False
        cluster.halt()
        done = training.steps_done()
        is_of_data = luck < 0.5 or done == training.start_step
        step = done + is_of_data
        for told in (done, step):
            if told > training.told_step:
                self._target.report(cluster, training, told)
        good_step = done if is_of_data else int(self._rng.integers(training.start_step, done))
        kind = Kind.loss_not_finite if is_of_data else Kind.replicas_differ
        ranks = () if is_of_data or luck < 0.75 else (cluster.nodes[-1].ranks[0],)
        said = encode(Anomaly(kind, step, good_step, "simulated", ranks))
        silent = int(luck * 100) % 2  # a rank of the last node may die before it gets to say so
        heard = cluster.nodes[: len(cluster.nodes) - silent]
        cluster.emit_of_ranks({"kind": "anomaly", "attempt": training.attempt, "step": step, "anomaly": said}, heard)
        for node in cluster.nodes[len(heard) :]:
            for rank in node.ranks if node.is_alive else ():
                self.exits_later(cluster, node, rank, training, how={"signal": 9}, after_s=self._costs.rank_death_s)
        return True

    # ---- nodes and ranks

    def _lose(self, cluster: FakeCluster, node: Node, with_peer: bool) -> bool:
        self._stand_still(cluster, node)
        peer = node.peer
        cluster.lose(node)
        if with_peer and peer is not None:
            cluster.lose(peer)
        if cluster.training is not None and self._rng.random() < 0.5:
            self._follow_on(cluster, cluster.training, node, self._costs.node_death_s)
        return True

    def _take_spares(self, cluster: FakeCluster) -> None:
        """For a while no node is free."""
        cluster.has_spares = False

        def give_back() -> None:
            cluster.has_spares = True

        self._world.after(float(self._rng.uniform(60, 1200)), give_back)

    def _stand_still(self, cluster: FakeCluster, node: Node | None = None) -> None:
        """All ranks stop where they are. What was done is reported, but the last report of `node` may be lost."""
        training = cluster.training
        if training is None or training.is_halted:
            return
        done = training.steps_done()
        cluster.halt()
        self._target.invariants.furthest_step = max(self._target.invariants.furthest_step, done)
        is_lost = node is not None and self._rng.random() < 0.3
        if is_lost and done - 1 > training.told_step:
            self._target.report(cluster, training, done - 1)
        if done > training.told_step:
            self._target.report(cluster, training, done, node if is_lost else None)

    def _raise(self, cluster: FakeCluster, node: Node, rank: int, text: str) -> None:
        training = cluster.training
        assert training is not None
        about = {"attempt": training.attempt, "rank": rank, "node": node.index}
        self._die(cluster, node, rank, {"exit_code": 1}, {**about, "kind": "failed", "message": text, "trace": ""})

    def _die(
        self, cluster: FakeCluster, node: Node, rank: int, how: dict[str, Any], said: Message | None = None
    ) -> None:
        training = cluster.training
        assert training is not None
        self._stand_still(cluster)
        self.exits_later(cluster, node, rank, training, said=said, how=how, after_s=self._costs.rank_death_s)
        if self._rng.random() < 0.5:
            self._follow_on(cluster, training, node, 1.0)

    def _follow_on(self, cluster: FakeCluster, training: Training, node: Node, within_s: float) -> None:
        """Another rank sees that a connection is closed."""
        others = [other for other in cluster.nodes if other.is_alive and other.ranks and other is not node]
        if others:
            other = others[int(self._rng.integers(len(others)))]
            about = {"attempt": training.attempt, "rank": other.ranks[0], "node": other.index}
            echo = {**about, "kind": "failed", "message": FOLLOW_ON, "trace": ""}
            delay_s = float(self._rng.uniform(0, within_s))
            self.exits_later(cluster, other, other.ranks[0], training, said=echo, after_s=delay_s)

    def exits_later(
        self,
        cluster: FakeCluster,
        node: Node,
        rank: int,
        training: Training,
        *,
        after_s: float,
        said: Message | None = None,
        how: dict[str, Any] | None = None,
    ) -> None:
        """Its agent tells of a rank's end, unless it was stopped before, or the node is lost."""

        def act() -> None:
            if not node.is_alive or rank not in node.ranks or cluster.training is not training:
                return
            node.ranks.remove(rank)
            if said is not None:
                cluster.emit(said)
            end = {"exit_code": None, "signal": None, **(how or {"exit_code": 1})}
            about = {"kind": "exited", "attempt": training.attempt, "rank": rank, "node": node.index}
            rest = {"is_stopped": False, "tail": [], "stack": [], "reason": None}
            cluster.emit({**about, **end, **rest, "time": EPOCH_S + self._world.now_s})

        self._world.after(after_s, act)

    def _hang(self, cluster: FakeCluster, node: Node, rank: int) -> None:
        """A rank stands still, and the others wait for it; its agent says so, again and again."""
        training = cluster.training
        assert training is not None
        self._stand_still(cluster)
        node.stuck.add(rank)
        about = {"kind": "stalled", "attempt": training.attempt, "rank": rank, "node": node.index}
        limit_s = 3 * training.step_s + 5

        def bark() -> None:
            if node.is_alive and cluster.training is training and rank in node.ranks:
                cluster.emit(about)
                self._world.after(limit_s, bark)

        if training.has_begun:
            self._world.after(limit_s + 0.1, bark)

    # ---- the store

    def _fail_store(self, fault: StoreFault) -> bool:
        files = self._target.files
        if files.fault is not None:
            return False
        files.fault = fault

        def cure() -> None:
            files.fault = None

        self._world.after(float(self._rng.uniform(20, 3000)), cure)
        return True


_DRIVERS = frozenset(
    {Fault.wandb_outage, Fault.preemption, Fault.in_leaving, Fault.duplicate, Fault.driver_death, Fault.torn_write}
)
