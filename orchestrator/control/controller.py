"""The controller: hears the agents, asks `decide`, carries out what it says. One per run, in the driver.

All its state can be rebuilt from the run folder: a driver that dies is replaced by typing the command again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.checkpoint.commit import newest_valid
from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.store import Store
from orchestrator.codec import encode
from orchestrator.config import WorkerStart
from orchestrator.control import lifecycle
from orchestrator.control.attempt import Attempt, Message
from orchestrator.control.chronicle import Chronicle
from orchestrator.control.cluster import AgentHandle, EventStream, RayCluster
from orchestrator.control.collect import step_row, with_evaluation
from orchestrator.control.lifecycle import Action, Budget, State, decide
from orchestrator.control.opening import OpenRun
from orchestrator.control.persist import Saved, save_checkpoint
from orchestrator.control.specs import worker_specs, worker_threads
from orchestrator.errors import CheckpointError, PlacementError
from orchestrator.observe.failure import digest
from orchestrator.placement import place
from orchestrator.spec import Placement, ResumePoint

POLL_S = 0.5
STOP_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Interruption:
    """Time since a failure was seen, until the run trains again."""

    since_s: float
    """Monotonic."""
    at_step: int


class Controller:
    def __init__(
        self,
        run: OpenRun,
        cluster: RayCluster,
        chronicle: Chronicle,
        is_notice_given: Callable[[], int],
        *,
        interruption: Interruption | None = None,
    ) -> None:
        """`is_notice_given` counts the preemption notices so far; `interruption` is what an earlier driver's death
        cost."""
        self.state = State.placing
        self.restarts = 0
        self.downtime_s = 0.0
        self.last_checkpoint: str | None = None
        self.failure_digest: str | None = None
        self._run = run
        self._cluster = cluster
        self._chronicle = chronicle
        self._is_notice_given = is_notice_given
        self._notices_taken = 0
        self._store = Store(run.checkpoint_url)
        self._budget = self._full_budget()
        self._agents: list[AgentHandle] = []
        self._placement: Placement | None = None
        self._stream: EventStream | None = None
        self._attempt: Attempt | None = None
        self._interruption = interruption
        self._committed_step = 0

    def run(self, placement: Placement) -> State:
        """Until the run has finished, failed or left. Agents and reservation are the cluster's to release."""
        self._start_agents(placement)
        self._tell(lifecycle.Placed())
        while not self.state.is_end:
            self._poll()
        return self.state

    def _full_budget(self) -> Budget:
        fault = self._run.config.fault
        return Budget(restarts_left=fault.max_restarts, identical_limit=fault.max_identical_failures)

    # ---- deciding

    def _tell(self, event: lifecycle.Event) -> None:
        decision = decide(self.state, event, self._budget)
        self.state, self._budget = decision.state, decision.budget
        match decision.action:
            case Action.start:
                self._start_attempt()
            case Action.stop:
                self._stop_ranks()
                self._tell(lifecycle.Stopped())
            case Action.place:
                self._place_again()
            case Action.drain:
                self._ask_to_drain()
            case Action.fail:
                self._record_failure()
            case Action.finish | Action.leave | Action.none:
                pass

    def _poll(self) -> None:
        assert self._stream is not None
        events, dead = self._stream.poll(POLL_S)
        for event in events:
            if self.state.is_end:
                return
            self._hear(event)
        for agent in dead:
            self._lose_node(agent)
        while self._notices_taken < self._is_notice_given() and not self.state.is_end:
            self._notices_taken += 1
            self._chronicle.event("preemption_notice", self._number, self._last_step)
            self._tell(lifecycle.PreemptionNotice())
        self._check_start_timeout()

    @property
    def _number(self) -> int:
        return self._attempt.number if self._attempt else 0

    @property
    def _last_step(self) -> int | None:
        return self._attempt.last_step if self._attempt else None

    # ---- starting

    def _start_agents(self, placement: Placement) -> None:
        config = self._run.config
        self._placement = placement
        self._agents = self._cluster.start_agents(
            placement,
            run_id=self._run.plan.run_id,
            is_warm=config.worker.start is WorkerStart.fork,
            threads=worker_threads(config),
        )
        if self._run.plan.device == "cuda" and config.worker.start is WorkerStart.fork:
            self._check_cuda_fork()
        self._stream = self._cluster.events()

    def _check_cuda_fork(self) -> None:
        problems = self._cluster.call_all([(agent, ()) for agent in self._agents], "check_cuda_fork")
        for agent, problem in zip(self._agents, problems, strict=True):
            if problem is not None:
                self._chronicle.console.warn(
                    f"SLOW START on {agent.host}: a forked process can't use CUDA ({problem}); ranks import for "
                    "themselves as with worker.start=spawn"
                )

    def _start_attempt(self) -> None:
        run, placement = self._run, self._placement
        assert placement is not None
        try:
            resume = self._resume_point()
        except CheckpointError as error:
            self.failure_digest = str(error)
            self._tell(lifecycle.GaveUp())
            return
        number = claim_attempt(run)
        self._attempt = Attempt(number, resume, len(placement.ranks), time.monotonic())
        lost = max(0, self._interruption.at_step - resume.step) if self._interruption else 0
        self._chronicle.event(
            "attempt_started",
            number,
            resume.step,
            resume_step=resume.step,
            checkpoint=resume.checkpoint,
            world_size=len(placement.ranks),
            zero_stage=run.plan.zero_stage,
            steps_lost=lost,
        )
        try:
            self._start_ranks(number, resume, placement)
        except ConnectionError:
            return  # the stream tells of the dead agent

    def _start_ranks(self, number: int, resume: ResumePoint, placement: Placement) -> None:
        host = self._agents[0]
        config = self._run.config
        specs = worker_specs(
            config,
            self._run.plan,
            self._run.manifest,
            placement,
            attempt=number,
            resume=resume,
            checkpoint_url=self._run.checkpoint_url,
            store_host=host.address,
            store_port=self._cluster.call(host, "start_store"),
            interfaces=[config.cluster.network_interface or agent.interface for agent in self._agents],
        )
        by_node: dict[int, list[tuple[int, dict[str, Any]]]] = {agent.node: [] for agent in self._agents}
        for spec in specs:
            by_node[spec.node].append((spec.rank, encode(spec)))
        self._cluster.call_all(
            [(agent, (number, by_node[agent.node])) for agent in self._agents], "start_ranks"
        )

    def _resume_point(self) -> ResumePoint:
        """The newest checkpoint of which every byte verifies; a damaged one is set aside."""

        def on_reject(step: int, reason: str) -> None:
            path = self._store.where(step_folder(step))
            self._chronicle.event("checkpoint_rejected", self._number, step, path=path, message=reason)

        plan = self._run.plan
        marker = newest_valid(self._store, plan.fingerprint, on_reject, plan.identity)
        if marker is None:
            return ResumePoint()
        self._committed_step = marker.step
        self.last_checkpoint = self._store.where(step_folder(marker.step))
        return ResumePoint(
            step=marker.step,
            checkpoint=self.last_checkpoint,
            skipped_windows=marker.data.skipped_windows,
        )

    def _place_again(self) -> None:
        """After a node was lost: wait for what the plan needs, for `cluster.start_timeout_s` at most."""
        config = self._run.config
        self._cluster.release()
        deadline = time.monotonic() + config.cluster.start_timeout_s
        while True:
            try:
                placement = place(
                    num_workers=config.cluster.num_workers,
                    workers_per_node=config.cluster.workers_per_node,
                    cpus_per_worker=config.cluster.cpus_per_worker,
                    gpus_per_worker=int(self._run.plan.device == "cuda"),
                    nodes=self._cluster.nodes(),
                )
                self._start_agents(placement)
                break
            except PlacementError as error:
                if time.monotonic() > deadline:
                    self.failure_digest = str(error)
                    self._tell(lifecycle.GaveUp())
                    return
                time.sleep(1.0)
        self._tell(lifecycle.Placed())

    def _check_start_timeout(self) -> None:
        limit_s = self._run.config.worker.start_timeout_s
        attempt = self._attempt
        if self.state is not State.starting or attempt is None or attempt.has_stepped:
            return
        if time.monotonic() - attempt.started_s > limit_s:
            self._begin_interruption()
            self.failure_digest = (
                f"attempt {attempt.number} did no step in worker.start_timeout_s={limit_s:g}; see its rank logs, "
                "or raise the limit"
            )
            self._tell(lifecycle.AttemptFailed("start timed out"))

    # ---- stopping

    def _stop_ranks(self) -> None:
        for agent in list(self._agents):
            try:
                self._cluster.call(agent, "stop_ranks", STOP_TIMEOUT_S)
            except ConnectionError:
                continue  # its ranks ended with it
        assert self._stream is not None
        for event in self._stream.poll(0.0)[0]:
            self._hear(event)
        self._flush_held_rows()
        self._chronicle.end_attempt()
        self.restarts += self.state in (State.stopping, State.replacing)

    def _ask_to_drain(self) -> None:
        for agent in self._agents:
            try:
                self._cluster.call(agent, "drain")
            except ConnectionError:
                continue

    def _record_failure(self) -> None:
        attempt = self._attempt
        if attempt is not None and attempt.failures:
            done = f"{self.restarts} restarts, then stopped: fault.max_restarts or max_identical_failures is used up"
            logs = f"phalanx logs {self._run.folder.path}"
            self.failure_digest = digest(attempt.failures, done=done, next_steps=[logs])
        self._chronicle.event(
            "run_failed",
            self._number,
            self._last_step,
            digest=self.failure_digest or "no rank could be started",
        )

    # ---- hearing

    def _hear(self, message: Message) -> None:
        if message["kind"] == "output":
            self._chronicle.output(message)
            return
        attempt = self._attempt
        if attempt is None or message["attempt"] != attempt.number:
            return
        match message["kind"]:
            case "step":
                self._on_step(attempt, message)
            case "evaluated":
                self._on_evaluated(attempt, message)
            case "saved":
                self._on_saved(attempt, message)
            case "save_failed":
                self._chronicle.event(
                    "checkpoint_failed", attempt.number, message["step"], message=message["message"]
                )
            case "done":
                self._on_done(attempt, message)
            case "failed":
                attempt.said[message["rank"]] = message
            case "exited":
                self._on_exited(attempt, message)

    def _on_step(self, attempt: Attempt, message: Message) -> None:
        messages = attempt.steps.add(message)
        if messages is None:
            return
        row = step_row(self._run.plan, messages)
        is_first = not attempt.has_stepped
        attempt.last_step = row.step
        attempt.losses[row.step] = row.loss
        if is_first:
            self._on_first_step(attempt)
        every = self._run.config.train.eval_every_steps
        is_last = row.step == self._run.plan.steps
        if every and (row.step % every == 0 or is_last):
            attempt.held_rows[row.step] = row
        else:
            self._chronicle.row(row, is_last)

    def _on_first_step(self, attempt: Attempt) -> None:
        self._chronicle.event(
            "first_step", attempt.number, attempt.last_step, seconds=time.monotonic() - attempt.started_s
        )
        if self._interruption is not None:
            downtime_s = time.monotonic() - self._interruption.since_s
            self.downtime_s += downtime_s
            self._chronicle.event(
                "recovered",
                attempt.number,
                attempt.last_step,
                downtime_s=downtime_s,
                steps_lost=max(0, self._interruption.at_step - attempt.resume.step),
                source="disk" if self._store.is_local else "remote",
                resume_step=attempt.resume.step,
            )
            self._interruption = None
        if self.state in (State.starting, State.draining):
            self._tell(lifecycle.FirstStep())

    def _on_evaluated(self, attempt: Attempt, message: Message) -> None:
        messages = attempt.evaluations.add(message)
        row = attempt.held_rows.pop(message["step"], None) if messages is not None else None
        if messages is None or row is None:
            return
        validation = self._run.manifest.validation
        evaluated = with_evaluation(row, messages, validation.text_bytes / max(1, validation.tokens))
        self._chronicle.row(evaluated, evaluated.step == self._run.plan.steps)

    def _flush_held_rows(self) -> None:
        """Steps whose evaluation never came: done all the same."""
        attempt = self._attempt
        if attempt is not None:
            for step in sorted(attempt.held_rows):
                self._chronicle.row(attempt.held_rows.pop(step), step == self._run.plan.steps)

    def _on_saved(self, attempt: Attempt, message: Message) -> None:
        if attempt.saving_step != message["step"]:
            attempt.saving_step = message["step"]
            self._chronicle.event("checkpoint_started", attempt.number, message["step"])
        messages = attempt.saves.add(message)
        if messages is None:
            return
        step = message["step"]
        saved = Saved(
            run=self._run,
            attempt=attempt.number,
            step=step,
            skipped_windows=attempt.resume.skipped_windows,
            loss=attempt.losses.get(step),
            wandb_run_id=self._chronicle.tracker.wandb_run_id,
        )
        try:
            marker = save_checkpoint(self._store, saved, messages)
        except CheckpointError as error:
            self._chronicle.event("checkpoint_failed", attempt.number, step, message=str(error))
            return
        self._committed_step = step
        self.last_checkpoint = self._store.where(step_folder(step))
        self._budget = self._full_budget()  # the limit is on failures without progress in between
        self._chronicle.event(
            "checkpoint_committed",
            attempt.number,
            step,
            path=self.last_checkpoint,
            bytes=marker.total_bytes,
            seconds=max(m["seconds"] for m in messages),
        )

    def _on_done(self, attempt: Attempt, message: Message) -> None:
        attempt.dones[message["rank"]] = message
        if not attempt.is_done:
            return
        self._flush_held_rows()
        done_step = message["step"]
        if self._committed_step != done_step:
            self.failure_digest = (
                f"all steps to {done_step} are done, but their checkpoint could not be saved to "
                f"{self._run.checkpoint_url}; see checkpoint_failed in events.jsonl, then start the run again"
            )
            self._tell(lifecycle.GaveUp())
        elif attempt.is_drained:
            self._tell(lifecycle.Drained())
        else:
            self._chronicle.event(
                "run_finished", attempt.number, done_step, loss=attempt.losses.get(done_step)
            )
            self._tell(lifecycle.AllDone())

    def _on_exited(self, attempt: Attempt, message: Message) -> None:
        if attempt.ended_well(message):
            return
        host = self._agents[message["node"]].host if message["node"] < len(self._agents) else "?"
        failure = attempt.add_failure(message, host)
        self._chronicle.event(
            "rank_died",
            attempt.number,
            attempt.last_step,
            rank=failure.rank,
            node=host,
            signal=failure.signal,
            exit_code=failure.exit_code,
            message=failure.message,
        )
        self._begin_interruption()
        self._tell(lifecycle.AttemptFailed(attempt.signature()))

    def _lose_node(self, agent: AgentHandle) -> None:
        if agent not in self._agents or self.state.is_end:
            return
        self._agents.remove(agent)
        self._chronicle.event("node_lost", self._number, self._last_step, node=agent.host)
        self._begin_interruption()
        self._tell(lifecycle.NodeLost(f"attempt {self._number}: node {agent.host}"))

    def _begin_interruption(self) -> None:
        if self._interruption is None:
            self._interruption = Interruption(time.monotonic(), self._last_step or 0)


def claim_attempt(run: OpenRun) -> int:
    """The next attempt's number, taken by exclusive create: no two drivers ever have the same."""
    taken = [int(path.name.removeprefix("attempt_")) for path in run.folder.path.glob("attempt_[0-9]*")]
    number = max(taken, default=0) + 1
    while True:
        try:
            run.folder.attempt(number).mkdir()
            return number
        except FileExistsError:
            number += 1
