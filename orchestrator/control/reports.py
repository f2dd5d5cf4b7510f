"""What the ranks report becomes rows of metrics and committed checkpoints. The controller decides; this records."""

import time

from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.store import Store
from orchestrator.control.attempt import Attempt, Message
from orchestrator.control.chronicle import Chronicle
from orchestrator.control.collect import step_row, with_evaluation
from orchestrator.control.opening import OpenRun
from orchestrator.control.persist import Saved, save_checkpoint
from orchestrator.errors import CheckpointError


class Reports:
    def __init__(self, run: OpenRun, store: Store, chronicle: Chronicle) -> None:
        self.committed_step = 0
        self.last_checkpoint: str | None = None
        self._run = run
        self._store = store
        self._chronicle = chronicle

    def hear_step(self, attempt: Attempt, message: Message) -> bool:
        """True where this completes the attempt's first step on every rank."""
        messages = attempt.steps.add(message)
        if messages is None:
            return False
        row = step_row(self._run.plan, messages)
        is_first = not attempt.has_stepped
        attempt.last_step = row.step
        attempt.losses[row.step] = row.loss
        if is_first:
            seconds = time.monotonic() - attempt.started_s
            self._chronicle.event("first_step", attempt.number, row.step, seconds=seconds)
        if self._is_evaluated(row.step):
            attempt.held_rows[row.step] = row
        else:
            self._chronicle.row(row, row.step == self._run.plan.steps)
        return is_first

    def _is_evaluated(self, step: int) -> bool:
        every = self._run.config.train.eval_every_steps
        return every > 0 and (step % every == 0 or step == self._run.plan.steps)

    def hear_evaluation(self, attempt: Attempt, message: Message) -> None:
        messages = attempt.evaluations.add(message)
        row = attempt.held_rows.pop(message["step"], None) if messages is not None else None
        if messages is None or row is None:
            return
        validation = self._run.manifest.validation
        evaluated = with_evaluation(row, messages, validation.text_bytes / max(1, validation.tokens))
        self._chronicle.row(evaluated, evaluated.step == self._run.plan.steps)

    def flush(self, attempt: Attempt) -> None:
        """Rows whose evaluation never came: their steps are done all the same."""
        for step in sorted(attempt.held_rows):
            self._chronicle.row(attempt.held_rows.pop(step), step == self._run.plan.steps)

    def hear_save_failed(self, attempt: Attempt, message: Message) -> None:
        self._chronicle.event("checkpoint_failed", attempt.number, message["step"], message=message["message"])

    def hear_saved(self, attempt: Attempt, message: Message) -> bool:
        """True where this commits a checkpoint."""
        step = message["step"]
        if attempt.saving_step != step:
            attempt.saving_step = step
            self._chronicle.event("checkpoint_started", attempt.number, step)
        messages = attempt.saves.add(message)
        if messages is None:
            return False
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
            return False
        self.restored(step)
        self._chronicle.event(
            "checkpoint_committed",
            attempt.number,
            step,
            path=self.last_checkpoint,
            bytes=marker.total_bytes,
            seconds=max(m["seconds"] for m in messages),
        )
        return True

    def restored(self, step: int) -> None:
        """The newest checkpoint is now that of `step`."""
        self.committed_step = step
        self.last_checkpoint = self._store.where(step_folder(step))
