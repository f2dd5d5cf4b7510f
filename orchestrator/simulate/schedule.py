"""One run from its first command to its end, through the faults that a seed draws; invariants after every event."""

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.reader import read_marker
from orchestrator.checkpoint.slots import Share
from orchestrator.checkpoint.store import Store
from orchestrator.control.lifecycle import Decide, State, decide
from orchestrator.control.opening import OpenRun
from orchestrator.control.rollback import lineage_in
from orchestrator.data.order import GlobalOrder, window_of_step
from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.observe.metrics import surviving_rows
from orchestrator.simulate.costs import Costs
from orchestrator.simulate.drivers import Driver, Stage
from orchestrator.simulate.faults import Injection, Scenario, draw
from orchestrator.simulate.files import MemoryFiles
from orchestrator.simulate.injecting import Injector
from orchestrator.simulate.invariants import Invariants
from orchestrator.simulate.nodes import FakeCluster, Node
from orchestrator.simulate.outcome import Course
from orchestrator.simulate.saving import Payloads, Saves
from orchestrator.simulate.trained import Trained, digest_of
from orchestrator.simulate.training import Message, Training, batch_digest, step_report
from orchestrator.simulate.world import EPOCH_S, Abandoned, World
from orchestrator.spec import Placement

TICK_S = 60.0
NOTICE_S = 900.0
"""Beside the time for its last checkpoint, what a driver may take to leave: it may be amid a recovery."""
RETYPE_S = 120.0
"""Until a person, or the scheduler, starts the run again."""
MAX_STARTS_IN_VAIN = 60
"""In a row, none of which brings the run any further: it would never end."""
MAX_ROWS_CHECKED = 20


class Schedule:
    def __init__(
        self,
        run: OpenRun,
        placement: Placement,
        costs: Costs,
        payloads: Payloads,
        *,
        scenario: Scenario,
        seed: int,
        decide: Decide = decide,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        """`run.folder` must be new, and is written to. `on_progress` is told the share of the steps' time now and
        then."""
        self._on_progress = on_progress
        self._length_s = scenario.steps * costs.step_s
        self.course = Course(seed=seed)
        self.world = World()
        self.drivers: list[Driver] = []
        self.invariants = Invariants(max_restarts=run.config.fault.max_restarts)
        self.files = MemoryFiles(self.invariants.put)
        self.rng = np.random.default_rng(seed)
        self.costs = costs
        self._run = run
        self._store = Store(run.checkpoint_url, files=self.files)
        self._payloads = payloads
        self._injections = draw(scenario, self.rng)
        self._injector = Injector(self)
        self._order = GlobalOrder(
            num_rows=run.manifest.train.num_rows(run.plan.batch.seq_len), seed=run.config.run.seed
        )
        self._stage = Stage(
            world=self.world,
            run=run,
            placement=placement,
            costs=costs,
            store=self._store,
            decide=decide,
            on_event=self._on_event,
            is_store_failing=lambda: self.files.fault is not None,
        )
        self._saves: dict[int, Saves] = {}
        self._furthest_step = 0
        """When a driver was started last."""
        self._starts_in_vain = 0
        self._skipped: tuple[int, ...] = ()
        """Windows that the newest attempt leaves out."""
        self._is_finished = False
        self._last_fault = ""
        horizon = [injection.at_s for injection in self._injections]
        self._deadline_s = 4 * (scenario.steps * costs.step_s + max(horizon, default=0.0)) + 48 * 3600.0

    def run(self) -> Course:
        """To the run's end, or to the first violation."""
        state = random.getstate()
        random.seed(self.course.seed)  # the jitter of retries
        try:
            for injection in self._injections:
                self.world.at(injection.at_s, self._injecting(injection))
            self._type_command()
            while not self._is_finished and not self.invariants.violations:
                self._go_on()
        except CheckpointError as error:
            self.invariants.violations.append(f"{type(error).__name__}: {error}")
        finally:
            random.setstate(state)
            for driver in self.drivers:
                driver.kill()
        self._close()
        return self.course

    def _injecting(self, injection: Injection) -> Callable[[], None]:
        def act() -> None:
            if self._injector.inject(injection.fault):
                self.course.injected[injection.fault] += 1
                self._last_fault = injection.fault

        return act

    def _go_on(self) -> None:
        if not self.world.step():
            self.invariants.violations.append("nothing will happen any more, and the run has not ended")
        if self.world.now_s > self._deadline_s:
            self.invariants.violations.append(f"the run has not ended after {self.world.now_s / 3600:.0f} h")
        for driver in list(self.drivers):
            self._carefully(driver, driver.poll)
            if not driver.is_gone:
                self.invariants.violations += driver.violations()

    def expect_end(self, driver: Driver, limit_s: float | None = None) -> None:
        """A driver that has got a notice is gone before long, in `limit_s`, whatever the store does."""
        limit_s = limit_s or self._run.config.checkpoint.final_timeout_s + NOTICE_S

        def check() -> None:
            if not driver.is_gone:
                self.invariants.violations.append(f"{driver.name} goes on {limit_s:.0f} s after a notice")

        self.world.after(limit_s, check)

    def _carefully(self, driver: Driver, act: Callable[[], None]) -> None:
        """What a driver does; where it raises, or has ended, it is gone."""
        try:
            act()
        except ConfigError:  # no nodes for it: it exits with 2
            self._gone(driver)
            driver.kill()
            return
        except Abandoned:
            return
        except Exception as error:
            self.invariants.violations.append(f"{driver.name} raised {type(error).__name__}: {error}")
            return
        if driver.controller.state.is_end and not driver.is_gone:
            digest = driver.controller.failure_digest or ""
            self._gone(driver)
            state = driver.end()
            self.course.spent_s = driver.chronicle.goodput.closed().seconds()
            if state is State.failed:
                self.invariants.gave_up(driver.name, digest)
            if state is State.finished:
                self._check_end()

    def _gone(self, driver: Driver) -> None:
        self.drivers.remove(driver)
        if not self.drivers:
            self.world.after(RETYPE_S, self._retype)

    def _retype(self) -> None:
        if not self.drivers and not self._is_finished:
            self._type_command()

    def _type_command(self) -> None:
        """A new driver: the first, one after another's end, or one too many."""
        self.course.drivers += 1
        furthest_step = self.invariants.furthest_step
        self._starts_in_vain = 0 if furthest_step > self._furthest_step else self._starts_in_vain + 1
        self._furthest_step = furthest_step
        if self._starts_in_vain > MAX_STARTS_IN_VAIN:
            self.invariants.violations.append(f"{self._starts_in_vain} starts have brought the run no further")
            return
        name = f"driver{self.course.drivers}"
        cluster = FakeCluster(self.world, self.costs, name, self._start_training)
        self._saves[id(cluster)] = Saves(
            self.world, self.files, self._payloads, self._run.config.checkpoint, self.costs.persist_s
        )
        driver = Driver(name, self._stage, cluster)
        self.drivers.append(driver)
        self._tick(driver)
        self._carefully(driver, driver.begin)

    def type_again(self) -> None:
        self._type_command()

    def kill(self, driver: Driver) -> None:
        self._gone(driver)
        driver.kill()

    def _tick(self, driver: Driver) -> None:
        """A driver looks at its clock now and then, also where it hears nothing."""
        if not driver.is_gone:
            self._on_progress(min(1.0, self.world.now_s / self._length_s))
            self.world.after(TICK_S, lambda: self._tick(driver))

    # ---- training

    def _start_training(self, cluster: FakeCluster, spec: Message) -> Training:
        resume = spec["resume"]
        self.course.attempts += 1
        resumed = self._restored(cluster, resume)
        training = Training(self.world, self.costs, spec, resumed, lambda step: self._done(cluster, training, step))
        self._skipped = training.skipped
        self.invariants.started(training.attempt, resume["step"], resumed, training.skipped)
        is_read = resume["source"] in ("disk", "remote")
        loads_s = self.costs.load_s if is_read else self.costs.restore_s
        if self._find_damage(cluster, training, is_read):
            training.begin(1e12)
            training.halt()
            return training
        training.begin(self.costs.start_s + loads_s)
        if resume["source"] in ("memory", "peer"):
            self._tell(cluster, training, "step_again", resume["step"])
        if not resume["is_durable"] and training.is_save_due(resume["step"]):
            start_s = self.costs.start_s + loads_s
            self.world.after(start_s, lambda: self._save_again(cluster, training, resume["step"]))
        return training

    def _save_again(self, cluster: FakeCluster, training: Training, step: int) -> None:
        if cluster.training is training and not training.is_halted:
            self._saves[id(cluster)].begin(cluster, training, step, 0.0)

    def _restored(self, cluster: FakeCluster, resume: Message) -> Trained:
        """What the ranks find: the same everywhere, or it is a violation."""
        step = resume["step"]
        if resume["source"] == "start":
            return Trained(0, 0)
        if resume["source"] in ("memory", "peer"):
            size = len(self._stage.placement.ranks)
            found = {n.own.get(Share(size, r), {}).get(step) for n in cluster.nodes for r in n.ranks}
        else:
            marker = read_marker(self._store, step)
            found = {self._payloads.read(self.files, step, file.file) for file in marker.files}
        states = sorted(state or Trained(-1, -1) for state in found)
        if len(states) != 1:
            self.invariants.violations.append(f"the ranks restore {states} for step {step} from {resume['source']}")
        return states[0]

    def _find_damage(self, cluster: FakeCluster, training: Training, is_read: bool) -> bool:
        """A rank finds that its snapshot is not what was sealed."""
        for node in cluster.nodes:
            for rank in sorted(node.damaged):
                node.damaged.discard(rank)
                if is_read or training.start_step == 0:
                    continue
                about = {"attempt": training.attempt, "rank": rank, "node": node.index}
                text = "the snapshot does not match its checksum"
                own = node.own.get(Share(training.world_size, rank), {})
                is_emptied = own.pop(training.start_step, None) is not None
                what = {"step": training.start_step, "message": text, "is_emptied": is_emptied}
                rejected = {**about, "kind": "snapshot_rejected", **what}
                self.world.after(self.costs.start_s, partial(cluster.emit, rejected))
                failed = {**about, "kind": "failed", "message": f"SnapshotDamagedError: {text}", "trace": ""}
                self._injector.exits_later(cluster, node, rank, training, said=failed, after_s=self.costs.start_s)
                return True
        return False

    def _done(self, cluster: FakeCluster, training: Training, step: int) -> None:
        """A step of interest is done."""
        if cluster.training is not training:
            return
        self.report(cluster, training, step)
        if training.is_save_due(step):
            self._saves[id(cluster)].begin(cluster, training, step, self.costs.seal_s)

    def report(self, cluster: FakeCluster, training: Training, step: int, without: Node | None = None) -> None:
        """Every rank's report of a step; those of a lost node don't arrive."""
        self.invariants.furthest_step = max(self.invariants.furthest_step, step)
        if without is None:
            training.told_step = step
        self._tell(cluster, training, "step", step, without)

    def _tell(
        self, cluster: FakeCluster, training: Training, kind: str, step: int, without: Node | None = None
    ) -> None:
        time_s = EPOCH_S + training.time_of(step) if kind == "step" else EPOCH_S + self.world.now_s
        said = {**step_report(training, step, time_s), "kind": kind}
        nodes = [node for node in cluster.nodes if node is not without]
        if step:
            first = {**said, "digest": self._digest(training, step)}
            for node in nodes:
                for rank in node.ranks if node.is_alive else ():
                    cluster.emit({**(said if rank else first), "rank": rank, "node": node.index})

    def _digest(self, training: Training, step: int) -> str:
        return batch_digest(training, step, self._order, self._run.plan.batch.global_batch_size)

    # ---- what the drivers say, and the end

    def _on_event(self, driver: str, record: Mapping[str, Any]) -> None:
        self.invariants.recorded(driver, record)
        if record["event"] == "recovered":
            fields = ("downtime_s", "steps_lost", "source")
            self.course.recoveries.append({name: record[name] for name in fields} | {"fault": self._last_fault})
        elif record["event"] == "checkpoint_committed":
            self.course.commits += 1

    def _check_end(self) -> None:
        self._is_finished = True
        plan, found = self._run.plan, None
        step = max(self.invariants.committed, default=0)
        if step:
            marker = read_marker(self._store, step)
            states = {self._payloads.read(self.files, step, file.file) for file in marker.files}
            found = states.pop() if len(states) == 1 else None
        self.invariants.ended(plan.steps, found, self._skipped)
        lineage = lineage_in(self._run.folder.branches)  # not every step is reported, so some rows are left behind
        rows = [r for r in surviving_rows(self._run.folder.metrics).values() if lineage.survives(r.attempt, r.step)]
        for row in rows[-MAX_ROWS_CHECKED:]:
            window = window_of_step(row.step - 1, self._skipped)
            expected = digest_of(self._order.rows_of_window(window, plan.batch.global_batch_size))
            if row.batch_digest != expected:
                self.invariants.violations.append(f"step {row.step} has read other samples than the order says")

    def _close(self) -> None:
        self.course.violations = list(self.invariants.violations)
        self.course.wall_s = self.world.now_s

    def newest_file(self) -> tuple[int, str] | None:
        """(step, path) of a file of the newest checkpoint, for tearing."""
        step = max(self.invariants.committed, default=0)
        if not step:
            return None
        names = self.files.names(step_folder(step))
        return step, f"{step_folder(step)}/{names[int(self.rng.integers(len(names)))]}"
