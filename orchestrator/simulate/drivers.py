"""A driver in virtual time: what `drive` does around the real controller, from the command to its exit."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.checkpoint.store import Store
from orchestrator.control.chronicle import Chronicle
from orchestrator.control.controller import Controller
from orchestrator.control.downtime import Interruption
from orchestrator.control.lifecycle import Decide, State
from orchestrator.control.opening import OpenRun
from orchestrator.observe.console import Console
from orchestrator.observe.ledger import read_events
from orchestrator.observe.metrics import read_last_rows
from orchestrator.observe.tracking import NullTracker
from orchestrator.simulate.costs import Costs
from orchestrator.simulate.nodes import FakeCluster
from orchestrator.simulate.world import EPOCH_S, Background, DriverClock, World
from orchestrator.spec import Placement

ORDERLY_ENDS = frozenset({"run_finished", "run_failed", "preemption_notice"})
OnEvent = Callable[[str, Mapping[str, Any]], None]


class _Tracker(NullTracker):
    """Hears what a driver writes down; W&B's outages come as notices, as the real one's do."""

    def __init__(self, driver: str, on_event: OnEvent) -> None:
        super().__init__()
        self._driver = driver
        self._on_event = on_event

    def event(self, record: Mapping[str, Any]) -> None:
        self._on_event(self._driver, record)

    def fail(self) -> None:
        self._notices.append("W&B does not answer; the run is recorded offline")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What all drivers of a run share."""

    world: World
    run: OpenRun
    placement: Placement
    costs: Costs
    store: Store
    decide: Decide
    on_event: OnEvent
    is_store_failing: Callable[[], bool]


class Driver:
    def __init__(self, name: str, stage: Stage, cluster: FakeCluster) -> None:
        self.name = name
        self.cluster = cluster
        self.notices = 0
        self.is_gone = False
        """Ended, or killed."""
        run, world = stage.run, stage.world
        self._background = Background(world, stage.costs.commit_s, stage.is_store_failing)
        clock = DriverClock(world, self._background)
        found = interruption(run, clock)
        self.tracker = _Tracker(name, stage.on_event)
        self._silence = open(os.devnull, "w")  # noqa: SIM115, PTH123 -- closed with the chronicle
        self.chronicle = Chronicle(
            run.folder,
            Console(self._silence, False, every_steps=10**9),
            self.tracker,
            1,
            driver_started_s=clock.time(),
            clock=clock,
        )
        world.advance(stage.costs.driver_s)
        if not run.folder.events.stat().st_size:
            self.chronicle.event("run_started", 0, 0, world_size=len(stage.placement.ranks))
        self.controller = Controller(
            run,
            cluster,
            self.chronicle,
            lambda: self.notices,
            interruption=found,
            clock=clock,
            background=self._background,
            store=stage.store,
            decide=stage.decide,
        )
        self._placement = stage.placement

    def begin(self) -> None:
        self.controller.start_agents(self._placement)
        self.controller.begin()

    def violations(self) -> list[str]:
        """What can't be true of a live driver between two events."""
        found, self.cluster.violations = self.cluster.violations, []
        state, training = self.controller.state, self.cluster.training
        if self.controller.reports.fenced_by is not None and state not in (State.failing, State.leaving):
            found.append(f"{self.name} goes on, {state.value}, after another has taken the run over")
        if training is not None and training.told_step > training.start_step and state is State.starting:
            found.append(f"{self.name} is {state.value} although attempt {training.attempt} has done steps")
        return found

    def poll(self) -> None:
        self.controller.poll(0.0)

    def end(self) -> State:
        """The process ends by itself; returns how."""
        self.is_gone = True
        self.controller.reports.close(is_finished=self.controller.state is State.finished)
        self.cluster.end()
        self.chronicle.close(0)
        self._silence.close()
        return self.controller.state

    def kill(self) -> None:
        """SIGKILL: nothing is said, nothing is finished."""
        self.is_gone = True
        self._background.abandon()
        self.cluster.end()
        self.chronicle.close(1)
        self._silence.close()


def interruption(run: OpenRun, clock: DriverClock) -> Interruption | None:
    """As a driver finds it in the run folder; by the ledger's times, because files have the machine's."""
    events = read_events(run.folder.events)
    starts = [index for index, event in enumerate(events) if event["event"] == "attempt_started"]
    last = events[starts[-1] :] if starts else []
    if not last or any(event["event"] in ORDERLY_ENDS for event in last):
        return None
    rows = read_last_rows(run.folder.metrics, 1)
    seen_s = max(float(event["t"]) for event in last) - EPOCH_S
    return Interruption(since_s=min(clock.monotonic(), seen_s), at_step=rows[0].step if rows else 0)
