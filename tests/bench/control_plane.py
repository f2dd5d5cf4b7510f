"""What 10,000 nodes cost the driver, at work and idle: python -m tests.bench.control_plane"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.compose import compose
from orchestrator.checkpoint.slots import Share
from orchestrator.checkpoint.store import Store
from orchestrator.control.chronicle import Chronicle
from orchestrator.control.controller import Controller
from orchestrator.control.lifecycle import State
from orchestrator.control.opening import OpenRun
from orchestrator.fleet.members import AgentHandle, Replaced
from orchestrator.observe.console import Console
from orchestrator.observe.tracking import NullTracker
from orchestrator.runfolder import RunFolder
from orchestrator.simulate.files import MemoryFiles
from orchestrator.simulate.setting import setting_of
from orchestrator.spec import Placement
from tests.bench.harness import Bench, Comparison, Figure, Measured, main

AGENTS = 10_000
FEW_AGENTS = 100
RANKS_PER_AGENT = 8
IDLE_S = 5.0
POLL_S = 0.5

ABOUT = """The real controller, with its ledger, reports, claims and specs, on one core; its agents are imagined: they
answer at once and say what 8 ranks each would say. Forming a group: from the decision to start until every rank's
spec is handed over and the first step of all 80,000 ranks is heard. A death: from the word that a rank has died until
all agents have been told to stop, the newest snapshot that all have is found, and the next attempt's ranks are
started. Idle: CPU seconds per second while nothing is said. What Ray adds (10,000 actors, their outstanding calls and
the lease renewals) is not in it: that takes a cluster."""

Message = dict[str, Any]


class ImaginedCluster:
    """Agents that answer at once. `said` is what they say next."""

    def __init__(self) -> None:
        self.said: list[Message] = []
        self.started: list[tuple[int, int]] = []
        """(attempt, ranks started) of each call."""
        self._agents: list[AgentHandle] = []
        self._sealed: list[dict[Share, list[int]]] = []

    def start_agents(self, placement: Placement, *, is_warm: bool, threads: int) -> list[AgentHandle]:
        self._agents = [
            AgentHandle(node, node, f"host-{node}", f"host-{node}", None, node) for node in placement.nodes
        ]
        return self._agents

    def replace_agents(self, placement: Placement, nodes: Sequence[int], wait_s: float) -> Replaced:
        return Replaced(self._agents)

    def has_room(self, placement: Placement, nodes: Sequence[int]) -> bool:
        return False

    def has_replacements(self, placement: Placement, nodes: Sequence[int]) -> bool:
        return False

    def seal(self, placement: Placement, step: int) -> None:
        """Every rank's snapshot of `step` is in its agent's memory."""
        self._sealed = [{} for _ in self._agents]
        for place in placement.ranks:
            self._sealed[place.node][Share(len(placement.ranks), place.rank)] = [step]

    def call_all(self, calls: Sequence[tuple[AgentHandle, tuple[object, ...]]], method: str) -> list[Any]:
        if method == "start_ranks":
            self.started += [(arguments[0], len(arguments[2])) for _, arguments in calls]  # type: ignore[misc,arg-type]
        if method == "sealed_steps":
            return [self._sealed[agent.node] for agent, _ in calls]
        if method == "copied_steps":
            return [{} for _ in calls]
        return [1 if method == "start_store" else None for _ in calls]

    def call_living(
        self, agents: Sequence[AgentHandle], method: str, *arguments: object, timeout_s: float | None = None
    ) -> list[Any]:
        return [True for _ in agents]

    def events(self) -> "ImaginedCluster":
        return self

    def add(self, agent: AgentHandle) -> None:
        raise AssertionError("no agent is replaced here")

    def poll(self, timeout_s: float) -> tuple[list[Message], list[AgentHandle]]:
        if not self.said:
            time.sleep(timeout_s)
        said, self.said = self.said, []
        return said, []

    def catch_up(self) -> tuple[list[Message], list[AgentHandle]]:
        return self.poll(0.0)


def step_messages(placement: Placement, attempt: int, step: int) -> list[Message]:
    said: Message = {
        "kind": "step", "attempt": attempt, "step": step, "loss_sum": 1.0, "grad_norm": 1.0, "lr": 1e-4,
        "step_s": 1.0, "data_s": 0.0, "snapshot_s": 0.0, "keep_s": 0.0, "wait_s": 0.0, "digest": "0" * 16,
        "rng_digest": "0" * 16, "memory_bytes": 0, "time": time.time(), "phases_s": {"step": 1.0},
    }  # fmt: skip
    return [{**said, "rank": place.rank, "node": place.node} for place in placement.ranks]


def measure_once(agents: int, folder: Path) -> dict[str, float]:
    """Seconds to form a group and to act on a death, and idle CPU seconds per second."""
    config = compose(["experiment=llama_8b_h100x64", "tracking=jsonl", "worker.start=spawn"]).config
    setting = setting_of(config, gpus=agents * RANKS_PER_AGENT, ranks_per_node=RANKS_PER_AGENT)
    run = OpenRun(setting.config, setting.plan, setting.manifest, RunFolder(folder), "imagined://store", False)
    cluster, placement = ImaginedCluster(), setting.placement
    with open(os.devnull, "w") as silence:  # noqa: PTH123
        console = Console(silence, False)
        chronicle = Chronicle(run.folder, console, NullTracker(), 1, driver_started_s=time.time())
        store = Store(run.checkpoint_url, files=MemoryFiles(lambda path, data: None))
        controller = Controller(run, cluster, chronicle, lambda: 0, store=store)
        controller.start_agents(placement)
        cluster.said = step_messages(placement, 1, 1)
        started = time.perf_counter()
        controller.begin()
        controller.poll(0.0)
        formed_s = time.perf_counter() - started
        assert controller.state is State.running
        assert sum(ranks for _, ranks in cluster.started) == len(placement.ranks)

        used_s, started = time.process_time(), time.perf_counter()
        while time.perf_counter() - started < IDLE_S:
            controller.poll(POLL_S)
        idle_share = (time.process_time() - used_s) / (time.perf_counter() - started)

        cluster.seal(placement, 1)
        end = {"exit_code": None, "signal": 9, "is_stopped": False, "tail": [], "stack": [], "reason": None}
        cluster.said = [{"kind": "exited", "attempt": 1, "rank": 7, "node": 0, "time": time.time(), **end}]
        started = time.perf_counter()
        controller.poll(0.0)
        acted_s = time.perf_counter() - started
        assert controller.state is State.starting
        assert cluster.started[-1][0] == 2
        controller.reports.close()
        chronicle.close(0)
    return {"formed_s": formed_s, "acted_s": acted_s, "idle_share": idle_share}


def measure(options: argparse.Namespace) -> Measured:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found: dict[int, list[dict[str, float]]] = {AGENTS: [], FEW_AGENTS: []}
    for _ in range(options.pairs):
        for agents, samples in found.items():
            with tempfile.TemporaryDirectory(prefix="phx-bench-") as folder:
                samples.append(measure_once(agents, Path(folder)))
    many, few = found[AGENTS], found[FEW_AGENTS]
    idle = Comparison(
        name="idle CPU: 10,000 agents against 100",
        unit="CPU s per s",
        goal="1: independent of the number of healthy ranks",
        ours=[[sample["idle_share"]] for sample in many],
        peer=[[sample["idle_share"]] for sample in few],
    )
    figures = [
        Figure(name="forming a group of 80,000 ranks", unit="s", samples=[s["formed_s"] for s in many]),
        Figure(name="acting on a death among 80,000 ranks", unit="s", samples=[s["acted_s"] for s in many]),
    ]
    settings = {"pairs": options.pairs, "agents": AGENTS, "ranks_per_agent": RANKS_PER_AGENT}
    return Measured(settings=settings, comparisons=[idle], figures=figures)


BENCH = Bench(
    name="control_plane",
    title="The control plane at 10,000 nodes",
    about=ABOUT,
    pairs=3,
    measure=measure,
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
