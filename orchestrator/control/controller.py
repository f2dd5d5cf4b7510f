"""The controller: hears the agents, asks `decide`, carries out what it says. One per run, in the driver.

All its state can be rebuilt from the run folder: a driver that dies is replaced by typing the command again.
"""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from orchestrator.checkpoint.fencing import Claim
from orchestrator.checkpoint.store import Store
from orchestrator.control import lifecycle, telling
from orchestrator.control.attempt import Attempt, Message
from orchestrator.control.avoidance import Avoidance
from orchestrator.control.chronicle import Chronicle
from orchestrator.control.claiming import Claims
from orchestrator.control.clock import SYSTEM_CLOCK, Clock
from orchestrator.control.disktier import disk_tier
from orchestrator.control.downtime import Downtime, Interruption
from orchestrator.control.growth import Growth
from orchestrator.control.inheritance import Heritage
from orchestrator.control.lifecycle import Action, Decide, State, decide
from orchestrator.control.memorytrust import MemoryTrust
from orchestrator.control.opening import OpenRun
from orchestrator.control.preemption import UntakenNotices
from orchestrator.control.reports import Reports
from orchestrator.control.resuming import Resuming
from orchestrator.control.rollback import Rollbacks, anomaly_digest, anomaly_fields
from orchestrator.control.specs import full_budget
from orchestrator.control.stalls import dump_stacks, examine
from orchestrator.control.stragglers import StragglerWatch
from orchestrator.errors import CheckpointError, FencedError, PlacementError, SupersededError
from orchestrator.fleet.fleet import Fleet
from orchestrator.fleet.members import AgentHandle, Cluster, host_of
from orchestrator.spec import Placement, ResumePoint

POLL_S = 0.5


class Controller:
    def __init__(
        self,
        run: OpenRun,
        cluster: Cluster,
        chronicle: Chronicle,
        count_notices: Callable[[], int],
        *,
        interruption: Interruption | None = None,
        claim: Claim | None = None,
        clock: Clock = SYSTEM_CLOCK,
        background: Executor | None = None,
        store: Store | None = None,
        decide: Decide = decide,
    ) -> None:
        """`count_notices` counts the preemption notices so far; `interruption` is what an earlier driver's death has
        cost; `claim` is the first attempt's, where the driver has it already; `background` commits checkpoints one by
        one (default: a thread). A simulation gives the last four."""
        self.state = State.placing
        self.restarts = 0
        self.downtime = Downtime(chronicle, clock, interruption)
        self.failure_digest: str | None = None
        self._reason: str | None = None
        """Why the run was given up, where that was not for want of budget."""
        store = store or Store(run.checkpoint_url, is_private=run.config.checkpoint.encrypt)
        self._disks = disk_tier(run.config, run.plan.run_id, cluster)
        self.reports = Reports(run, store, chronicle, clock, background, disks=self._disks)
        self._run = run
        self._clock = clock
        self._decide = decide
        self._cluster = cluster
        self._chronicle = chronicle
        self._notices = UntakenNotices(count_notices)
        self._budget = full_budget(self._run.config.fault)
        self._fleet = Fleet(run, cluster, chronicle, self._disks)
        self._avoidance = Avoidance(run.folder, run.config.fault, self._fleet, clock)
        self._growth = Growth(self._fleet, self._avoidance, clock, run.config.cluster.grow_interval_s)
        self._rollbacks = Rollbacks(run.folder, clock)
        parts = (run, store, self._disks, self._fleet, self.reports, self._rollbacks)
        self._resuming = Resuming(*parts, chronicle, clock, self._notices.are_there)
        self._attempt: Attempt | None = None
        self._claims = Claims(run, store, claim)
        self._memory = MemoryTrust()

    def start_agents(self, placement: Placement) -> list[AgentHandle]:
        """Reserve the nodes, start an agent on each. Raises PlacementError where they don't come free in time."""
        return self._fleet.start(placement)

    def take_over(self, heritage: Heritage, committed_step: int) -> None:
        """Before `begin`: go on from an earlier driver's agents' memory; `committed_step` is the ledger's newest."""
        attempt = self._attempt = heritage.attempt
        self._memory.is_given = self._rollbacks.lineage.survives(attempt.number, sys.maxsize)
        if committed_step:
            self.reports.restored(committed_step)
        self.reports.hear_unheard(attempt, heritage.unheard)
        for message in heritage.anomalies:
            self._rollbacks.hear(attempt, message)
        row = self._chronicle.last_row
        if row is not None and row.time is not None:  # it went on training without a driver
            self.downtime.trained_until(row.step, row.time)

    def measure_memory(self, planned_bytes: int) -> str | None:
        """At the end: what snapshots took of the fullest node, in words; None where an agent is gone."""
        if not (found := self._fleet.memory()):
            return None
        return telling.tell_memory(self._chronicle, found, planned_bytes, self._number, self._last_step)

    def begin(self) -> None:
        """Start the first attempt; from here on `poll` goes on until `state` is an end."""
        self._introduce()

    def run(self) -> State:
        """Until the run has finished, failed or left. Agents and reservation are the cluster's to release."""
        try:
            self.begin()
            while not self.state.is_end:
                self.poll(POLL_S)
        except SupersededError as error:
            self.failure_digest = str(error)
            self._tell(lifecycle.Superseded())
        finally:
            self.reports.close(is_finished=self.state is State.finished)
        return self.state

    # ---- deciding and carrying out

    def _tell(self, event: lifecycle.Event) -> None:
        decision = self._decide(self.state, event, self._budget)
        self.state, self._budget = decision.state, decision.budget
        match decision.action:
            case Action.start:
                self._start_attempt()
            case Action.stop:
                is_planned = isinstance(event, lifecycle.Paused)
                self.restarts += self.state in (State.stopping, State.replacing) and not is_planned
                self._stop_ranks()
                self._tell(lifecycle.Stopped())
            case Action.place:
                self._place_again()
            case Action.drain:
                self._fleet.drain()
            case Action.pause:
                self._fleet.pause()
            case Action.fail:
                self._record_failure()
            case Action.finish | Action.leave | Action.none:
                pass

    def poll(self, timeout_s: float) -> None:
        """Hear what has happened, within `timeout_s`, and act on it."""
        self._hear_agents(timeout_s)
        if self.reports.hear_commits():
            is_past_anomaly = self.reports.committed_step > self._rollbacks.anomaly_step
            full = full_budget(self._run.config.fault)
            self._budget = self._budget.renewed(full, is_past_anomaly=is_past_anomaly)
        self._give_way_if_fenced()
        self._conclude_if_done()
        self._take_notices()
        self._check_start_timeout()
        if self.state is State.running and self._growth.is_possible(self._attempt):
            self._tell(lifecycle.NodesBack())

    def _take_notices(self) -> None:
        while not self.state.is_end and self._notices.take():
            self._chronicle.event("preemption_notice", self._number, self._last_step)
            self._tell(lifecycle.PreemptionNotice())

    @property
    def _number(self) -> int:
        return self._attempt.number if self._attempt else 0

    @property
    def _last_step(self) -> int | None:
        return self._attempt.last_step if self._attempt else None

    def _start_attempt(self) -> None:
        world_size = len(self._fleet.placement.ranks)
        # Claimed first: whoever lives beside us commits nothing more, so what is the newest checkpoint stays so.
        on_disks = self._disks.find_newest_attempt() if self._disks else 0
        try:
            claim = self._claims.next(on_disks)
            resume = self._choose_point()
        except FencedError as error:
            self.reports.fenced_by = str(error)
            self._give_way_if_fenced()
            return
        except CheckpointError as error:
            self._give_up_waiting(str(error))
            return
        if resume is None:
            return
        number = claim.attempt
        self.reports.begin(claim, self._rollbacks.lineage)
        fault = self._run.config.fault
        watch = StragglerWatch(fault.straggler_factor, fault.evict_straggler_after_steps)
        previous = self._attempt
        self._attempt = Attempt(number, resume, world_size, self._clock.monotonic(), watch)
        former_size = previous.world_size if previous is not None else world_size
        lost = self.downtime.steps_lost(resume)
        telling.tell_start(self._chronicle, self._attempt, former_size, self._run.plan.zero_stage, lost)
        for report in self._fleet.reports_of(resume):
            self.reports.hear_step_again(self._attempt, {**report, "attempt": number})
        self._fleet.start_ranks(number, resume)

    def _choose_point(self) -> ResumePoint | None:
        """Raises CheckpointError. None where a node has died since the ranks were stopped, and that was acted on: the
        others' memory is still good."""
        attempt = self._attempt
        if attempt is not None and self._memory.is_given:
            try:
                return self._resuming.point(attempt, is_memory_asked=True)
            except ConnectionError:
                self._hear_agents(POLL_S)
                if self._attempt is not attempt or self.state is not State.starting:
                    return None
        return self._resuming.point(attempt, is_memory_asked=False)

    def _give_up(self, reason: str) -> None:
        self._reason = reason
        self._tell(lifecycle.GaveUp())

    def _give_up_waiting(self, reason: str) -> None:
        """For nodes, or the store. A notice ends such a wait, too: then the run may be resumed."""
        self._take_notices()
        if self.state is State.draining:  # no rank is there to leave
            self._tell(lifecycle.AttemptFailed(reason))
        elif not self.state.is_end:
            self._give_up(reason)

    def _place_again(self) -> None:
        """After a node was lost, or came back: others keep their agents, and so their snapshots."""
        try:
            self._fleet.replace_lost()
        except PlacementError as error:
            self._give_up_waiting(str(error))
            return
        self._introduce()

    def _introduce(self) -> None:
        """The agents get to know each other. Where one is lost meanwhile it is a failure like any other."""
        try:
            self._fleet.introduce()
        except ConnectionError as error:
            self._hear_agents(POLL_S)
            if self.state is State.placing:  # it does not answer, and is not known to be lost
                self._interrupt(lifecycle.AttemptFailed(f"attempt {self._number}: {error}"))
            return
        self._tell(lifecycle.Placed())

    def _check_start_timeout(self) -> None:
        limit_s = self._run.config.worker.start_timeout_s
        attempt = self._attempt
        if self.state is not State.starting or attempt is None or attempt.is_start_untimed:
            return
        if self._clock.monotonic() - attempt.started_s > limit_s:
            dump_stacks(self._cluster, self._fleet.agents, "no step was done in worker.start_timeout_s")
            self.failure_digest = attempt.too_late_digest(limit_s)
            self._interrupt(lifecycle.AttemptFailed("start timed out"))

    def _stop_ranks(self) -> None:
        self._fleet.stop_ranks()
        self._hear_agents(0.0)  # what the ranks said last belongs to their attempt
        self._lose_nodes(*self._avoidance.take_leaving())
        if self._attempt is not None:
            self.reports.flush(self._attempt)
        self.reports.settle()
        self._chronicle.end_attempt()

    def _record_failure(self) -> None:
        if self.reports.fenced_by is not None:
            self.failure_digest = self.reports.fenced_by
            return
        attempt, rank = self._attempt, None
        if self._reason is None and attempt is not None and attempt.failures:
            rank, self.failure_digest = telling.failure_words(attempt, self.restarts, self._run.folder.path)
        self.failure_digest = self._reason or self.failure_digest or "no rank could be started"
        self._chronicle.event("run_failed", self._number, self._last_step, rank=rank, digest=self.failure_digest)

    # ---- hearing

    def _hear_agents(self, timeout_s: float) -> None:
        for event in self._fleet.hear(timeout_s):
            self._hear(event)
        agents = self._fleet.take_dead()
        self._avoidance.lost([agent.host for agent in agents])
        self._lose_nodes(agents)

    def _hear(self, message: Message) -> None:
        if message["kind"] == "output":
            self._chronicle.output(message)
            return
        attempt = self._attempt
        if attempt is None or message["attempt"] != attempt.number or self.state.is_end:
            return
        match message["kind"]:
            case "step":
                if self.reports.hear_step(attempt, message):
                    self._on_first_step(attempt)
                if attempt.stragglers:
                    telling.tell_stragglers(self._chronicle, attempt, self._fleet.host_of_rank)
            case "done":
                attempt.dones[message["rank"]] = message
                self._conclude_if_done()
            case "snapshot_rejected":
                self._memory.rejected(attempt.number, is_emptied=message["is_emptied"])
                telling.tell_rejected(self._chronicle, message)
            case "failed":
                attempt.said[message["rank"]] = message
            case "exited":
                self._on_exited(attempt, message)
            case "anomaly":
                self._on_anomaly(attempt, message)
            case "stalled":
                self._on_stalled(attempt)
            case _:
                self.reports.hear(attempt, message)

    def _on_first_step(self, attempt: Attempt) -> None:
        if not self.state.is_training:  # the last words of ranks that are being stopped
            return
        self._memory.stepped()
        self._growth.on_first_step()
        self.downtime.end(attempt, attempt.last_step)
        if self.state in (State.starting, State.draining):
            self._tell(lifecycle.FirstStep())
        self._fleet.prepare_standbys(attempt.number)

    def _conclude_if_done(self) -> None:
        """Where every rank has done its last step and it is known what became of its checkpoint."""
        attempt = self._attempt
        if attempt is None or not attempt.is_done or not self.state.is_training:
            return
        if attempt.is_paused:
            self._interrupt(lifecycle.Paused())
            return
        done_step = attempt.dones[0]["step"]
        if not attempt.is_drained:
            self.downtime.end(attempt, done_step)  # where it had no step left to do
        if self.reports.is_committing(done_step):
            return
        self.reports.flush(attempt)
        is_saved = self.reports.committed_step == done_step
        if not is_saved and attempt.is_drained:  # it goes on from the checkpoint before all the same
            self._chronicle.console.warn(self.reports.unsaved_digest(done_step))
            self._tell(lifecycle.AttemptFailed(f"attempt {attempt.number}: not saved"))
        elif not is_saved:
            self._give_up(self.reports.unsaved_digest(done_step))
        elif attempt.is_drained:
            self._tell(lifecycle.Drained())
        else:
            self._chronicle.event("run_finished", attempt.number, done_step, loss=attempt.losses.get(done_step))
            self._tell(lifecycle.AllDone())

    def _on_exited(self, attempt: Attempt, message: Message) -> None:
        if attempt.ended_well(message):
            return
        failure = attempt.add_failure(message, host_of(self._fleet.agents, message["node"]))
        self._chronicle.event("rank_died", attempt.number, attempt.last_step, **telling.death_fields(failure))
        self._interrupt(lifecycle.AttemptFailed(attempt.signature()))

    def _on_stalled(self, attempt: Attempt) -> None:
        """A node's watchdog has barked: fail the attempt where all nodes' ranks say that it hangs."""
        if not self.state.is_training:
            return
        facts = examine(self._cluster, self._fleet.agents, attempt, self._clock.time())
        if facts is None:
            return
        self._chronicle.event("hang_detected", attempt.number, attempt.last_step, **facts)
        self._interrupt(lifecycle.AttemptFailed(attempt.signature()))

    def _on_anomaly(self, attempt: Attempt, message: Message) -> None:
        """Every rank says the same, after what it has to report of the step, and leaves."""
        anomaly = self._rollbacks.hear(attempt, message)
        if len(attempt.left) < attempt.world_size or not self.state.is_training:
            return
        hosts = [self._fleet.host_of_rank(rank) for rank in anomaly.ranks]
        self._chronicle.event("anomaly", attempt.number, anomaly.step, **anomaly_fields(anomaly, hosts))
        self._avoidance.wrong(anomaly)
        self.failure_digest = anomaly_digest(anomaly, self._run.config.fault)
        self._interrupt(lifecycle.AnomalyFound())

    def _give_way_if_fenced(self) -> None:
        """Another copy of the run has taken over. Exit code 1 and not 75: a scheduler would start it again, and it
        would take the run back from the copy that lives. The run has not failed: its ledger does not say so."""
        if self.reports.fenced_by is not None and not self.state.is_end and self.state is not State.failing:
            self._give_up(self.reports.fenced_by)

    def _lose_nodes(self, agents: Sequence[AgentHandle], why: str | None = None) -> None:
        """What is found lost together is one failure, and replaced together. `why`: they are left on purpose."""
        if not agents or self.state.is_end:
            return
        for agent in agents:
            ranks = self._fleet.lose(agent, is_left=why is not None)
            telling.tell_lost(self._chronicle, self._attempt, agent.host, self._clock.time(), ranks=ranks, why=why)
        hosts = ", ".join(agent.host for agent in agents)
        self._interrupt(lifecycle.NodeLost(f"attempt {self._number}: node {hosts}"))

    def _interrupt(self, event: lifecycle.Event) -> None:
        """Tell of what keeps the run from training; from here on time and steps are lost."""
        self.downtime.begin(self._last_step or 0)
        self._tell(event)
