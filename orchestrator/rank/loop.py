"""The training loop of one rank: batch, step, report; save and evaluate when due; leave when all agree to."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from model.engine import Engine, StepResult
from model.schedule import learning_rate
from orchestrator.agent.channel import Channel, Message
from orchestrator.agent.watchdog import Phase
from orchestrator.codec import encode
from orchestrator.control.anomalies import Anomaly, LossWatch
from orchestrator.data.batches import BatchLoader, StepBatch, read_step
from orchestrator.data.digest import format_digest, sum_digests
from orchestrator.data.order import GlobalOrder, eval_rows_at
from orchestrator.data.shards import TokenReader
from orchestrator.rank.checks import Repetition, ReplicaCheck
from orchestrator.rank.gpuhealth import GpuHealth
from orchestrator.rank.inbox import Inbox
from orchestrator.rank.progress import Progress
from orchestrator.rank.residentbytes import peak_resident_bytes
from orchestrator.rank.snapshots import Snapshots
from orchestrator.rank.stopwatch import Stopwatch
from orchestrator.rank.voting import Agreement, Ballot, Vote
from orchestrator.spec import WorkerSpec


class Loop:
    def __init__(
        self,
        spec: WorkerSpec,
        engine: Engine,
        channel: Channel,
        inbox: Inbox,
        snapshots: Snapshots,
        *,
        progress: Progress,
        stopwatch: Stopwatch,
        recent_losses: Sequence[float] = (),
        gpu: GpuHealth | None = None,
    ) -> None:
        """`recent_losses`: as they were kept with the state that was restored."""
        self._spec = spec
        self._engine = engine
        self._channel = channel
        agreement = Agreement(spec.world_size)
        self._ballot = Ballot(agreement, inbox, snapshots, progress)
        self._watch = LossWatch(
            spike_threshold=spec.fault.spike_threshold, spike_window=spec.fault.spike_window, recent=recent_losses
        )
        self._snapshots = snapshots
        self._replicas = ReplicaCheck(spec, engine, agreement, progress)
        self._repetition = Repetition(spec, engine, snapshots, agreement, progress)
        self._recheck_s = 0.0
        """What doing the step before once more took."""
        self._keep_s = 0.0
        """What the snapshot of the step before took of this thread."""
        self._progress = progress
        self._stopwatch = stopwatch
        self._gpu = gpu

    def run(self) -> None:
        """From `resume.step` to the last step, or to the step boundary at which all ranks agree to leave.

        They leave without a snapshot where the step's numbers are bad: nothing of it is to be kept.
        """
        spec = self._spec
        reader = TokenReader(str(spec.data.path), spec.manifest, "train", spec.batch.seq_len)
        loader = BatchLoader(
            reader,
            GlobalOrder(num_rows=spec.manifest.train.num_rows(spec.batch.seq_len), seed=spec.seed),
            spec.batch,
            spec.rank,
            start_step=spec.resume.step,
            skipped=spec.resume.skipped_windows,
            prefetch=spec.data.prefetch_batches,
        )
        with loader:
            if (
                self._snapshots.restored_report is not None
            ):  # it may have been lost with the agent that was to tell it
                self._channel.send({**self._snapshots.restored_report, "kind": "step_again"})
            if not spec.resume.is_durable and self._is_save_due(spec.resume.step):
                self._keep(spec.resume.step, self._snapshots.restored_report or {}, is_leaving=False)
            if spec.resume.owes_evaluation:
                self._evaluate(spec.resume.step)
            for step in range(spec.resume.step, spec.steps):
                outcome = self._step(step, loader)
                done, report, is_leaving = step + 1, outcome.report, outcome.is_leaving
                if outcome.anomaly is not None:
                    self._progress.enter(Phase.done)
                    self._channel.send({"kind": "anomaly", "step": done, "anomaly": encode(outcome.anomaly)})
                    return
                kept = time.perf_counter()
                self._keep(done, report, is_leaving=is_leaving)
                self._keep_s = time.perf_counter() - kept
                if self._is_evaluation_due(done):
                    self._evaluate(done)
                if outcome.is_pausing and done < spec.steps:
                    self._pause(done, report)
                    return
                if is_leaving and done < spec.steps:
                    self._progress.enter(Phase.done)
                    self._channel.send({"kind": "done", "step": done, "is_drained": True})
                    return
            self._progress.enter(Phase.done)
            self._channel.send({"kind": "done", "step": spec.steps, "is_drained": False})
        self._snapshots.close()

    def _step(self, step: int, loader: BatchLoader) -> "_Outcome":
        """One optimizer step."""
        started, progress = time.perf_counter(), self._progress
        waited_ns = progress.waited_ns
        progress.begin_step(step)
        batch: StepBatch = loader.next()
        data_s = time.perf_counter() - started
        ballot = self._ballot
        lr = self._learning_rate(step)

        def before_update(loss_sum: float) -> None:
            self._replicas.begin(step + 1)
            ballot.cast(loss_sum)

        result = self._engine.train_step(step, batch.micro, lr, before_update, self._enter_compute)
        vote = ballot.outcome()
        replicas = self._replicas.verdict(step + 1)
        progress.end_step()
        self._snapshots.agreed(*vote.snapshots)
        loss = vote.loss_sum / self._spec.batch.tokens_per_step
        anomaly = self._watch.look(step + 1, loss, result.grad_norm, is_scaled_down=result.is_scaled_down)
        report: Message = {
            "kind": "step",
            "step": step + 1,
            "loss_sum": result.loss_sum,
            "grad_norm": result.grad_norm,
            "lr": lr,
            "step_s": time.perf_counter() - started,
            "data_s": data_s,
            "snapshot_s": ballot.stall_s,
            "keep_s": self._keep_s,
            "snapshots": self._snapshots.counts,
            "recheck_s": self._recheck_s,
            "wait_s": (progress.waited_ns - waited_ns) / 1e9,
            "digest": format_digest(batch.digest),
            "rng_digest": format_digest(sum_digests([result.rng_digest])),
            "memory_bytes": self._peak_memory_bytes(),
            "time": time.time(),
        }
        if self._gpu is not None and (reading := self._gpu.take()) is not None:
            report["gpu"] = reading
        if step == self._spec.resume.step:
            self._stopwatch.lap("step")
            self._channel.send({**report, "phases_s": self._stopwatch.laps_s})
        else:
            self._channel.send(report)
        anomaly = anomaly or replicas or self._recheck(step + 1, vote, batch, result)
        return _Outcome(report, vote.is_leaving, vote.is_pausing, anomaly)

    def _recheck(self, done: int, vote: Vote, batch: StepBatch, result: StepResult) -> Anomaly | None:
        self._recheck_s = 0.0
        if not self._repetition.is_due(done, vote.common_step):
            return None
        started = time.perf_counter()
        lr = self._learning_rate(done - 1)
        anomaly = self._repetition.verdict(done, batch, lr, result, self._enter_compute)
        self._recheck_s = time.perf_counter() - started
        return anomaly

    def _enter_compute(self, micro_step: int) -> None:
        self._progress.enter(Phase.compute, micro_step)

    def _learning_rate(self, step: int) -> float:
        optim = self._spec.optim
        return learning_rate(
            step,
            schedule=optim.schedule.value,
            lr=optim.lr,
            warmup_steps=optim.warmup_steps,
            schedule_steps=self._spec.schedule_steps,
            min_lr_ratio=optim.min_lr_ratio,
            decay_fraction=optim.decay_fraction,
        )

    def _is_save_due(self, done: int) -> bool:
        every = self._spec.checkpoint.every_steps
        return done == self._spec.steps or (every > 0 and done % every == 0)

    def _is_evaluation_due(self, done: int) -> bool:
        every = self._spec.train.eval_every_steps
        return every > 0 and (done % every == 0 or done == self._spec.steps)

    def _keep(self, done: int, report: Message, *, is_leaving: bool) -> None:
        """A snapshot where one is due, on its way to storage where a checkpoint is due."""
        every = self._spec.snapshot.every_steps
        is_persisted = self._is_save_due(done) or is_leaving
        if is_persisted or self._snapshots.is_due_on_disk(done) or (every > 0 and done % every == 0):
            is_last = is_leaving or done == self._spec.steps
            self._progress.enter(Phase.storing if is_last else Phase.saving)
            self._snapshots.take(done, partial(self._facts, report), is_persisted=is_persisted, is_last=is_last)

    def _pause(self, done: int, report: Message) -> None:
        """Leave with a snapshot in memory, from which another attempt goes on."""
        self._progress.enter(Phase.storing)
        self._snapshots.secure(done, partial(self._facts, report))
        self._progress.enter(Phase.done)
        self._channel.send({"kind": "done", "step": done, "is_drained": False, "is_paused": True})

    def _facts(self, report: Message) -> Message:
        """What is kept with a snapshot."""
        return {"report": report, "recent_losses": self._watch.recent}

    def _evaluate(self, done: int) -> None:
        spec = self._spec
        started = time.perf_counter()
        self._progress.enter(Phase.evaluation)
        reader = TokenReader(str(spec.data.path), spec.manifest, "validation", spec.batch.seq_len)
        num_rows = min(spec.train.eval_rows, spec.manifest.validation.num_rows(spec.batch.seq_len))
        batch = read_step(reader, eval_rows_at(spec.rank, num_rows, spec.batch), done)
        loss_sum = self._engine.evaluate(batch.micro, lambda index: self._progress.enter(Phase.evaluation, 1 + index))
        self._channel.send(
            {
                "kind": "evaluated",
                "step": done,
                "loss_sum": loss_sum,
                "tokens": int(sum(micro.weights.sum() for micro in batch.micro)) * spec.batch.seq_len,
                "seconds": time.perf_counter() - started,
            }
        )

    def _peak_memory_bytes(self) -> int:
        if self._spec.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return peak_resident_bytes()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Of one step, on this rank."""

    report: Message
    is_leaving: bool
    """The ranks agreed to leave after it, saved."""
    is_pausing: bool
    """They agreed to leave after it, with a snapshot in memory."""
    anomaly: Anomaly | None
    """Every rank has the same one."""
