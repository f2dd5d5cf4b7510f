"""One driver's part of a run, from the open run to the exit code: tracking, agents, controller, words, report."""

import errno
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.lease import LeaseTerms
from orchestrator.checkpoint.commit import committed_steps
from orchestrator.checkpoint.fencing import Claim
from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.store import Store
from orchestrator.codec import encode
from orchestrator.config import RunConfig
from orchestrator.control.badnodes import avoided
from orchestrator.control.chronicle import Chronicle
from orchestrator.control.claiming import claim_attempt
from orchestrator.control.controller import Controller
from orchestrator.control.downtime import interruption
from orchestrator.control.inheritance import heritage
from orchestrator.control.lifecycle import State
from orchestrator.control.opening import OpenRun, agents_name
from orchestrator.control.preemption import Preemptions
from orchestrator.control.rollback import lineage_in
from orchestrator.control.snapshotmemory import FittingSnapshots, interval_words, snapshot_words
from orchestrator.errors import EXIT_FAILED, EXIT_PREEMPTED, PlacementError, RunFolderError
from orchestrator.fleet.cluster import RayCluster
from orchestrator.fleet.members import AgentHandle
from orchestrator.fleet.tenancy import Tenancy
from orchestrator.observe.artifacts import data_artifact
from orchestrator.observe.console import Console
from orchestrator.observe.eyes import open_eyes
from orchestrator.observe.ledger import read_events
from orchestrator.observe.metrics import read_last_rows
from orchestrator.observe.tracking import start_tracking
from orchestrator.observe.units import plural
from orchestrator.observe.wording import EndFacts, StartFacts
from orchestrator.plan import memory_limit_bytes
from orchestrator.report.writing import write_report
from orchestrator.runfolder import RunFolder
from orchestrator.spec import Placement, ResumePoint

EXIT_CODES = {State.finished: 0, State.failed: EXIT_FAILED, State.preempted: EXIT_PREEMPTED}
TRACKER_WAIT_S = 3.0
"""How long the summary waits to name the W&B run; the ranks are still importing then."""


@dataclass(frozen=True, slots=True)
class Typed:
    """What the person typed, for the run folder and for the words at the end."""

    overrides: list[str]
    config_yaml: str
    command: str
    recipe_yaml: str = ""
    """The config without what was typed; empty where nobody needs the difference."""


class Session:
    """From an open run to its exit code."""

    def __init__(
        self,
        run: OpenRun,
        cluster: RayCluster,
        placement: Placement,
        snapshots: FittingSnapshots,
        typed: Typed,
        *,
        started_s: float,
    ) -> None:
        """`started_s`: of the driver, in unix seconds."""
        self._snapshots = snapshots
        self._run = run
        self._cluster = cluster
        self._placement = placement
        self._typed = typed
        self._started_s = time.monotonic()
        tracking = run.config.tracking
        console = Console(sys.stdout, sys.stdout.isatty(), every_steps=tracking.console_every_steps)
        tracker = start_tracking(
            tracking.wandb,
            run_id=run.plan.run_id,
            run_folder=run.folder,
            run_config=encode(run.config),
            resumed=run.is_resumed,
            used=[data_artifact(str(run.config.data.path), run.manifest)],
        )
        self._events = read_events(run.folder.events)
        self._chronicle = Chronicle(
            run.folder,
            console,
            tracker,
            tracking.every_steps,
            driver_started_s=started_s,
            eyes=open_eyes(tracking, run.folder),
        )

    def run(self, count_notices: Callable[[], int]) -> int:
        chronicle, run = self._chronicle, self._run
        exit_code = EXIT_FAILED
        try:
            claim = claim_attempt(run, Store(run.checkpoint_url))
            grace_s = run.config.fault.preemption_grace_s
            notices = Preemptions(count_notices, lambda: self._cluster.drain, grace_s, chronicle.console.warn)
            self._cluster.belong_to(tenancy(run, claim), lambda: avoided(run.folder), lambda: notices() > 0)
            found = interruption(run.folder, self._events)
            controller = Controller(run, self._cluster, chronicle, notices, interruption=found, claim=claim)
            try:
                agents = controller.start_agents(self._placement)
            except PlacementError:
                if not notices():
                    raise
                exit_code = EXIT_PREEMPTED
                chronicle.console.note(f"told to stop before its nodes were there; next: {self._typed.command}")
                return exit_code
            self._take_over(controller)
            self._tell_start(agents)  # while the zygotes import
            exit_code = EXIT_CODES[controller.run()]
            memory = controller.measure_memory(self._snapshots.memory.snapshot_bytes)
            self._cluster.release()
            self._tell_end(controller, memory)
        except OSError as error:
            if self._run.folder.path not in Path(str(error.filename)).parents:
                raise
            raise RunFolderError(self._stopped_words(error)) from error
        finally:
            chronicle.close(exit_code)
            if exit_code != EXIT_PREEMPTED:  # then there is no time left, and it is not the end
                self._report()
        return exit_code

    def _stopped_words(self, error: OSError) -> str:
        row = self._chronicle.last_row
        step = f" after step {row.step}" if row is not None else ""
        cure = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        return (
            f"{error.filename} can't be written ({error.strerror}): the run has stopped{step}; {cure}, then this "
            f"goes on: {self._typed.command}"
        )

    def _take_over(self, controller: Controller) -> None:
        """Go on from the memory of agents that an earlier driver has left, where there are any that fit."""
        found = self._cluster.inherited
        if not found:
            return
        row = next(iter(read_last_rows(self._run.folder.metrics, 1)), None)
        left = heritage(found, self._placement, self._run.plan.zero_stage, row, time.monotonic())
        agents = plural(len(found), "agent")
        if left is None:
            self._chronicle.console.note(f"taken over from an earlier driver: {agents}; no snapshot of theirs fits")
            return
        committed = [event["step"] for event in self._events if event["event"] == "checkpoint_committed"]
        controller.take_over(left, max(map(int, committed), default=0))
        attempt = left.attempt
        self._chronicle.console.note(
            f"taken over from an earlier driver: {agents}; attempt {attempt.number} had done step {attempt.last_step}"
        )

    def _report(self) -> None:
        """The report is for people: what keeps it from being written is told and changes nothing."""
        try:
            path = write_report(self._run.folder, is_at_end=True)
        except Exception as error:
            self._chronicle.console.warn(f"the report could not be written ({error})")
        else:
            self._chronicle.console.note(f"{'report':<12}{path}")

    def _tell_start(self, agents: Sequence[AgentHandle]) -> None:
        run, config = self._run, self._run.config
        plan = run.plan
        workers = Counter[str]()
        for agent in agents:  # not every node of the cluster: one may be spare
            workers[agent.host] += self._placement.bundles[agent.node].workers
        facts = StartFacts(
            run_folder=str(run.folder.path),
            nodes=workers,
            resume=newest_committed(run),
            tracking=self._chronicle.tracker.wait_until_known(TRACKER_WAIT_S),
            snapshots=snapshot_words(config, self._snapshots.memory),
            warnings=[
                *degraded(config, plan.device, self._cluster, run.folder),
                *([self._snapshots.note] if self._snapshots.note is not None else []),
            ],
        )
        limit = memory_limit_bytes(config, device=plan.device)
        self._chronicle.console.start(plan, facts, memory_limit_bytes=limit)
        if not run.is_resumed:
            self._chronicle.event(
                "run_started", 0, 0, run_id=plan.run_id, steps=plan.steps, world_size=plan.batch.world_size
            )
        previous = [e["world_size"] for e in self._events if e["event"] == "attempt_started"]
        if previous and previous[-1] != plan.batch.world_size:
            size = plan.batch.world_size
            change = {"from": previous[-1], "to": size, "why": f"started with cluster.num_workers={size}"}
            self._chronicle.event("resized", 0, facts.resume.step, **change)

    def _tell_end(self, controller: Controller, memory: str | None) -> None:
        console, plan = self._chronicle.console, self._run.plan
        if controller.state is State.failed:
            console.failure(controller.failure_digest or "no rank could be started")
            return
        row = self._chronicle.last_row
        console.end(
            EndFacts(
                run_id=plan.run_id,
                run_folder=str(self._run.folder.path),
                is_finished=controller.state is State.finished,
                step=row.step if row else 0,
                steps=plan.steps,
                tokens=self._chronicle.tokens,
                elapsed_s=time.monotonic() - self._started_s,
                loss=row.loss if row else None,
                restarts=controller.restarts,
                downtime_s=controller.downtime.total_s,
                checkpoint=controller.reports.last_checkpoint,
                memory=memory,
                snapshots=interval_words(self._run.config, controller.reports.snapshot_counts),
                goodput=self._chronicle.goodput.closed(),
                resume_command=self._typed.command,
            )
        )


def tenancy(run: OpenRun, claim: Claim) -> Tenancy:
    """Who this driver is to the agents of its run."""
    fault = run.config.fault
    terms = LeaseTerms(fault.lease_timeout_s, fault.driver_grace_s)
    return Tenancy(agents_name(run.folder), claim.attempt, terms)


def newest_committed(run: OpenRun) -> ResumePoint:
    """For the summary only: what will be loaded is verified first, by the controller."""
    store = Store(run.checkpoint_url)
    steps = committed_steps(store, lineage_in(run.folder.branches))
    if not steps:
        return ResumePoint()
    return ResumePoint(step=steps[-1], checkpoint=store.where(step_folder(steps[-1])))


def degraded(config: RunConfig, device: str, cluster: RayCluster, folder: RunFolder) -> list[str]:
    """What works, but not as well as it could, one sentence each."""
    warnings = []
    if bad := sorted(avoided(folder)):
        warnings.append(f"left alone while others have room: {', '.join(bad)}; {folder.bad_nodes} says why")
    cores = os.cpu_count() or 1
    cpus = config.cluster.num_workers * config.cluster.cpus_per_worker
    if cluster.is_ours and device == "cpu" and cpus > cores:
        warnings.append(f"{config.cluster.num_workers} workers share {cores} CPU cores: slow, but right")
    if not Store(config.checkpoint.url or ".").claims_exclusively():
        warnings.append(
            f"checkpoint.url={config.checkpoint.url} has no exclusive create: two live copies of this run could "
            "overwrite each other's checkpoints"
        )
    return warnings
