"""What the ranks report becomes rows of metrics and committed checkpoints. The controller decides; this records."""

from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from orchestrator.agent.persist import Committed, Saved, marker_of, save_checkpoint
from orchestrator.checkpoint.fencing import Claim
from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.lineage import WHOLE, Lineage
from orchestrator.checkpoint.store import Store
from orchestrator.control.attempt import Attempt, Message
from orchestrator.control.chronicle import Chronicle
from orchestrator.control.clock import Clock
from orchestrator.control.collect import slowest_phases, step_row, with_evaluation
from orchestrator.control.commits import Commits, Outcome, patience_for
from orchestrator.control.disktier import DiskTier
from orchestrator.control.opening import OpenRun
from orchestrator.control.snapshotmemory import SnapshotCounts
from orchestrator.control.storehealth import Say, StoreHealth
from orchestrator.errors import FencedError, StoreError
from orchestrator.observe.metrics import StepRow, surviving_rows
from orchestrator.observe.units import duration_text, plural


class Reports:
    def __init__(
        self,
        run: OpenRun,
        store: Store,
        chronicle: Chronicle,
        clock: Clock,
        background: Executor | None = None,
        *,
        disks: DiskTier | None = None,
    ) -> None:
        self.committed_step = 0
        self.last_checkpoint: str | None = None
        self.last_save_failure: str | None = None
        self.snapshot_counts = SnapshotCounts(0, 0, None)
        """Snapshots that were due on rank 0 in the newest attempt, those taken, those copied to a peer."""
        self.fenced_by: str | None = None
        """Why this driver may commit nothing more: another copy of the run has taken over."""
        self._claim: Claim | None = None
        self._lineage = WHOLE
        self._last_row_step = 0
        self._run = run
        self._store = store
        self._chronicle = chronicle
        self._clock = clock
        self._commits = Commits(store, clock, background)
        self._health = StoreHealth()
        self._slowness = StoreHealth()
        self._disks = disks
        self._disk_health = StoreHealth()
        self._last_waiting_step: int | None = None

    def begin(self, claim: Claim, lineage: Lineage) -> None:
        """An attempt starts: it commits under `claim`, and retention leaves out what `lineage` has left behind."""
        self._claim, self._lineage = claim, lineage
        if self._disks is not None:
            self._disks.claim(claim)

    def leave_behind(self, at_step: int) -> None:
        """Checkpoints after `at_step` are not the run's any more."""
        if self.committed_step > at_step:
            self.committed_step, self.last_checkpoint = 0, None

    def hear_step(self, attempt: Attempt, message: Message) -> bool:
        """True where this completes the attempt's first step on every rank."""
        messages = attempt.steps.add(message)
        if messages is None:
            return False
        row = step_row(self._run.plan, messages)
        self._chronicle.ranks(messages)
        attempt.stragglers += attempt.straggler_watch.look(messages)
        is_first = not attempt.has_stepped
        attempt.last_step = row.step
        self.snapshot_counts = SnapshotCounts(*messages[0].get("snapshots", self.snapshot_counts))
        attempt.losses[row.step] = row.loss
        self._last_row_step = row.step
        if is_first:
            seconds = self._clock.monotonic() - attempt.started_s
            phases_s = slowest_phases([m["phases_s"] for m in messages])
            self._chronicle.event("first_step", attempt.number, row.step, seconds=seconds, phases_s=phases_s)
        if self._is_evaluated(row.step):
            attempt.held_rows[row.step] = row
        else:
            self._chronicle.row(row, row.step == self._run.plan.steps)
        return is_first

    def hear(self, attempt: Attempt, message: Message) -> None:
        """What calls for no decision."""
        match message["kind"]:
            case "saved" | "save_failed" if message.get("is_disk"):
                self._hear_disk(attempt, message)
            case "step_again":
                self.hear_step_again(attempt, message)
            case "evaluated":
                self.hear_evaluation(attempt, message)
            case "saved":
                self.hear_saved(attempt, message)
            case "save_delayed":
                self.hear_save_delayed(message)
            case "save_failed":
                self.hear_save_failed(attempt, message)

    def hear_unheard(self, attempt: Attempt, messages: Iterable[Message]) -> None:
        """What the ranks of an earlier driver's attempt said that it may not have written down."""
        for message in messages:
            match message["kind"]:
                case "output":
                    self._chronicle.output(message)
                case "step":
                    self.hear_step(attempt, message)
                case _:
                    self.hear(attempt, message)
        self.flush(attempt)
        self._chronicle.end_attempt()

    def hear_step_again(self, attempt: Attempt, message: Message) -> None:
        """The step that the ranks were restored to: a lost agent may have taken its report along."""
        messages = attempt.repeats.add(message)
        if messages is None:
            return
        row = step_row(self._run.plan, messages)
        attempt.losses[row.step] = row.loss
        if attempt.resume.owes_evaluation:
            attempt.held_rows[row.step] = row
        elif row.step > self._last_row_step:
            self._last_row_step = row.step
            self._chronicle.row(row, row.step == self._run.plan.steps)

    def owes_evaluation(self, step: int) -> bool:
        """Whether an evaluation is due at `step`, where the next attempt starts, and none is on record: the attempt
        before ended amid it."""
        if not 0 < step <= self._run.plan.steps or not self._is_evaluated(step):
            return False
        row = surviving_rows(self._run.folder.metrics).get(step)
        return row is None or row.eval_loss is None

    def _row_before(self, attempt: Attempt, step: int) -> StepRow | None:
        """The row of the step that the attempt started from, where this driver or the record has it."""
        row = self._chronicle.last_row
        if row is None or row.step != step:
            row = surviving_rows(self._run.folder.metrics).get(step)
        return None if row is None or step != attempt.resume.step else replace(row, attempt=attempt.number)

    def _is_evaluated(self, step: int) -> bool:
        every = self._run.config.train.eval_every_steps
        return every > 0 and (step % every == 0 or step == self._run.plan.steps)

    def hear_evaluation(self, attempt: Attempt, message: Message) -> None:
        messages = attempt.evaluations.add(message)
        if messages is None:
            return
        row = attempt.held_rows.pop(message["step"], None) or self._row_before(attempt, message["step"])
        if row is None:
            return
        validation = self._run.manifest.validation
        evaluated = with_evaluation(row, messages, validation.text_bytes / max(1, validation.tokens))
        self._chronicle.row(evaluated, evaluated.step == self._run.plan.steps)

    def flush(self, attempt: Attempt) -> None:
        """Rows whose evaluation never came: their steps are done all the same."""
        for step in sorted(attempt.held_rows):
            self._chronicle.row(attempt.held_rows.pop(step), step == self._run.plan.steps)

    def hear_save_delayed(self, message: Message) -> None:
        """The store fails, and a rank's agent tries again."""
        is_last = message["is_last"]
        say = self._health.failed(message["fault"], self._clock.monotonic())
        if is_last and say is Say.nothing and self._last_waiting_step != message["step"]:
            say = Say.line  # from here on the run itself waits: a person should know why
        if is_last:
            self._last_waiting_step = message["step"]
        if say is not Say.nothing:
            self._say(say, self._delay_words(message))

    def _delay_words(self, message: Message) -> str:
        config, is_last = self._run.config.checkpoint, message["is_last"]
        which = "last checkpoint, of" if is_last else "checkpoint at"
        limit = "checkpoint.final_timeout_s" if is_last else "checkpoint.retry_timeout_s"
        limit_s = config.final_timeout_s if is_last else config.retry_timeout_s
        return (
            f"the {which} step {message['step']}, waits for its store and is tried again for {limit}={limit_s:g}: "
            f"{message['message']}"
        )

    def hear_save_failed(self, attempt: Attempt, message: Message) -> None:
        """A rank could not write its part of a checkpoint."""
        step = message["step"]
        if step not in attempt.failed_saves:
            attempt.failed_saves.add(step)
            if message.get("is_skipped"):
                self._skip(attempt, step, message["message"])
            else:
                self._fail(attempt, step, message["message"], message["fault"])
        self._add_save(attempt, message)

    def hear_saved(self, attempt: Attempt, message: Message) -> None:
        """A rank has written its part; the last one begins the commit, of which `hear_commits` tells."""
        step = message["step"]
        if attempt.saving_step != step:
            attempt.saving_step = step
            self._chronicle.event("checkpoint_started", attempt.number, step)
        self._add_save(attempt, message)

    def _add_save(self, attempt: Attempt, message: Message) -> None:
        messages = attempt.saves.add(message)
        if messages is None:
            return
        step = message["step"]
        if step in attempt.failed_saves:
            self._commits.discard(step, [m["payload"]["file"] for m in messages if m["kind"] == "saved"])
            return
        is_last = any(m["is_last"] for m in messages)
        if self._commits.is_backlogged and not is_last:
            self._skip(attempt, step, "storage takes no marker: those of the checkpoints before it still wait")
            return
        saved = self._saved(attempt, step)
        config = self._run.config.checkpoint
        patience = patience_for(
            is_last=is_last,
            retry_timeout_s=config.retry_timeout_s,
            final_timeout_s=config.final_timeout_s,
        )
        self._commits.begin(attempt, step, messages, lambda: save_checkpoint(self._store, saved, messages), patience)

    def _saved(self, attempt: Attempt, step: int) -> Saved:
        return Saved(
            run=self._run,
            attempt=attempt.number,
            claim=self._claim,
            time_s=self._clock.time(),
            step=step,
            skipped_windows=attempt.resume.skipped_windows,
            branch=attempt.resume.branch,
            lineage=self._lineage,
            loss=attempt.losses.get(step),
            wandb_run_id=self._chronicle.tracker.wandb_run_id,
        )

    def _hear_disk(self, attempt: Attempt, message: Message) -> None:
        """A rank's part is on its node's disk, or could not be written; the last one begins the commit there."""
        messages, step = attempt.disk_saves.add(message), message["step"]
        if messages is None or self._disks is None:
            return
        failed = [m for m in messages if m["kind"] == "save_failed"]
        if failed:
            self._disk_failed(step, failed[0]["message"], failed[0]["fault"])
            return
        saved = self._saved(attempt, step)
        self._disks.begin_commit(attempt, step, messages, lambda: marker_of(saved, messages))

    def _disk_failed(self, step: int, message: str, fault: str | None) -> None:
        """The next one is soon: nothing is tried again."""
        text = f"the checkpoint of step {step} on the nodes' disks failed, training goes on: {message}"
        self._say(self._disk_health.failed(fault, self._clock.monotonic()), text)

    def _hear_disk_commits(self) -> None:
        for outcome in self._disks.finished() if self._disks is not None else ():
            if isinstance(outcome.error, FencedError):
                self.fenced_by = str(outcome.error)
            elif outcome.error is not None:
                fault = outcome.error.fault if isinstance(outcome.error, StoreError) else None
                self._disk_failed(outcome.step, str(outcome.error), fault)
            else:
                facts = {"tier": "disk", "bytes": outcome.num_bytes, "seconds": outcome.seconds}
                facts |= {"pruned": outcome.pruned} if outcome.pruned else {}
                self._chronicle.event("snapshot", outcome.attempt, outcome.step, is_told=False, **facts)
                if self._disk_health.worked(self._clock.monotonic()) is not None:
                    self._chronicle.console.note("checkpoints are written to the nodes' disks again")

    def hear_commits(self) -> bool:
        """Record what became of the commits under way; True where one at checkpoint.url was made."""
        self._hear_disk_commits()
        has_committed = False
        for outcome in self._commits.finished():
            if outcome.committed is not None:
                self._committed(outcome, outcome.committed)
                has_committed = True
            elif outcome.error is not None:
                if isinstance(outcome.error, FencedError):
                    self.fenced_by = str(outcome.error)
                fault = outcome.error.fault if isinstance(outcome.error, StoreError) else None
                self._fail(outcome.attempt, outcome.step, str(outcome.error), fault)
            elif outcome.delayed_by is not None:
                error = outcome.delayed_by
                message = {"step": outcome.step, "message": str(error), "fault": error.fault}
                self.hear_save_delayed(message | {"is_last": outcome.is_last})
        return has_committed

    def _committed(self, outcome: Outcome, committed: Committed) -> None:
        if outcome.step > self.committed_step:  # agents write two at a time: the later one may be there first
            self.restored(outcome.step)
        self._chronicle.event(
            "checkpoint_committed",
            outcome.attempt.number,
            outcome.step,
            path=self._store.where(step_folder(outcome.step)),
            bytes=committed.marker.total_bytes,
            seconds=max(m["seconds"] for m in outcome.messages),
            **_pruning(committed),
        )
        outage_s = self._health.worked(self._clock.monotonic())
        if outage_s is not None:
            missed = plural(self._health.failed_saves, "checkpoint")
            text = f"checkpoints are written again after {duration_text(outage_s)}; {missed} could not be"
            self._health.failed_saves = 0
            self._chronicle.console.note(text)
            self._chronicle.tracker.alert("checkpoints are written again", text)

    def _skip(self, attempt: Attempt, step: int, message: str) -> None:
        """The store is too slow for this rate of checkpoints: no outage, and no alert."""
        self._health.failed_saves += self._health.is_failing
        is_told = self._slowness.failed(None, self._clock.monotonic()) is not Say.nothing
        self._chronicle.event("checkpoint_failed", attempt.number, step, is_told=is_told, message=message, fault=None)

    def _fail(self, attempt: Attempt, step: int, message: str, fault: str | None) -> None:
        self._health.failed_saves += 1
        self.last_save_failure = message
        say = self._health.failed(fault, self._clock.monotonic())
        is_told = say is not Say.nothing
        self._chronicle.event(
            "checkpoint_failed", attempt.number, step, is_told=is_told, message=message, fault=fault
        )
        if say is Say.alert:
            text = f"the checkpoint at step {step} failed, training goes on: {message}"
            self._chronicle.tracker.alert("a checkpoint failed", text)

    def _say(self, say: Say, text: str) -> None:
        if say is Say.alert:
            self._chronicle.alert("a checkpoint waits for its store", text)
        elif say is Say.line:
            self._chronicle.console.warn(text)

    def unsaved_digest(self, step: int) -> str:
        """What to say where the run has done its last step and could not save it."""
        return (
            f"all steps to {step} are done, but their checkpoint could not be saved in "
            f"checkpoint.final_timeout_s={self._run.config.checkpoint.final_timeout_s:g}: {self.last_save_failure}; "
            f"then start the run again: it goes on from {self.last_checkpoint or 'the start'}"
        )

    def is_committing(self, step: int) -> bool:
        return self._commits.is_pending(step)

    def settle(self) -> None:
        """Until no commit is under way, so that a restart knows what it can start from."""
        self._commits.settle()
        if self._disks is not None:
            self._disks.settle()
        self.hear_commits()

    def close(self, *, is_finished: bool = False) -> None:
        self._commits.close()
        if self._disks is not None:
            self._disks.close(is_finished=is_finished)
        self.hear_commits()

    def restored(self, step: int) -> None:
        """The newest checkpoint is now that of `step`."""
        self.committed_step = step
        self.last_checkpoint = self._store.where(step_folder(step))


def _pruning(committed: Committed) -> dict[str, Any]:
    """What the ledger says of retention, where there is anything to say."""
    fields = {"pruned": committed.pruned, "prune_failure": committed.prune_failure}
    return {name: value for name, value in fields.items() if value}
