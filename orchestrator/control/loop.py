"""The training loop of one rank: batch, step, report; save and evaluate when due; leave when all agree to."""

import resource
import time
from pathlib import Path

import torch
from torch import distributed as dist

from model.engine import Engine
from model.schedule import learning_rate
from orchestrator.checkpoint.layout import Extent, step_folder
from orchestrator.checkpoint.payload import write_payload
from orchestrator.checkpoint.store import Store
from orchestrator.control.channel import Channel
from orchestrator.data.batches import BatchLoader, StepBatch, read_step
from orchestrator.data.digest import format_digest
from orchestrator.data.order import GlobalOrder, eval_rows_at
from orchestrator.data.shards import TokenReader
from orchestrator.errors import CheckpointError
from orchestrator.spec import WorkerSpec


class Loop:
    def __init__(self, spec: WorkerSpec, engine: Engine, channel: Channel) -> None:
        self._spec = spec
        self._engine = engine
        self._channel = channel
        self._agreement = Agreement(spec.world_size)
        self._store = Store(spec.checkpoint_url)
        self._is_drain_asked = False

    def run(self) -> None:
        """From `resume.step` to the last step, or to the step boundary at which all ranks agree to leave."""
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
            for step in range(spec.resume.step, spec.steps):
                is_leaving = self._step(step, loader)
                done = step + 1
                if self._is_save_due(done) or is_leaving:
                    self.save(done)
                if self._is_evaluation_due(done):
                    self._evaluate(done)
                if is_leaving and done < spec.steps:
                    self._channel.send({"kind": "done", "step": done, "is_drained": True})
                    return
            self._channel.send({"kind": "done", "step": spec.steps, "is_drained": False})

    def _step(self, step: int, loader: BatchLoader) -> bool:
        """One optimizer step and its report; True where the ranks agreed to leave after it."""
        started = time.perf_counter()
        batch: StepBatch = loader.next()
        data_s = time.perf_counter() - started
        vote = self._agreement.vote(self._drain_asked())
        lr = self._learning_rate(step)
        result = self._engine.train_step(step, batch.micro, lr)
        is_leaving = vote.outcome()
        self._channel.send(
            {
                "kind": "step",
                "step": step + 1,
                "loss_sum": result.loss_sum,
                "grad_norm": result.grad_norm,
                "lr": lr,
                "step_s": time.perf_counter() - started,
                "data_s": data_s,
                "digest": format_digest(batch.digest),
                "memory_bytes": self._peak_memory_bytes(),
                "time": time.time(),
            }
        )
        return is_leaving

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

    def _drain_asked(self) -> bool:
        while not self._is_drain_asked and self._channel.ready():
            self._is_drain_asked = self._channel.receive()["kind"] == "drain"
        return self._is_drain_asked

    def _is_save_due(self, done: int) -> bool:
        every = self._spec.checkpoint.every_steps
        return done == self._spec.steps or (every > 0 and done % every == 0)

    def _is_evaluation_due(self, done: int) -> bool:
        every = self._spec.train.eval_every_steps
        return every > 0 and (done % every == 0 or done == self._spec.steps)

    def save(self, done: int) -> None:
        """Write this rank's payload and tell; the controller commits once every rank has told."""
        started = time.perf_counter()
        extents = (
            (
                Extent(fragment.name, kind, fragment.shape, fragment.start, fragment.count),
                view.detach().cpu().numpy(),
            )
            for fragment, kind, view in self._engine.owned_state()
        )
        small = {f"rng/torch/rank_{self._spec.rank:05d}": torch.get_rng_state().numpy()}
        try:
            payload = write_payload(
                self._store, step_folder(done), self._spec.rank, self._spec.attempt, extents, small
            )
        except CheckpointError as error:  # training goes on; the controller says so
            self._channel.send({"kind": "save_failed", "step": done, "message": str(error)})
            return
        self._channel.send(
            {
                "kind": "saved",
                "step": done,
                "payload": payload.to_dict(),
                "counters": self._engine.counters(),
                "seconds": time.perf_counter() - started,
            }
        )

    def _evaluate(self, done: int) -> None:
        spec = self._spec
        started = time.perf_counter()
        reader = TokenReader(str(spec.data.path), spec.manifest, "validation", spec.batch.seq_len)
        num_rows = min(spec.train.eval_rows, spec.manifest.validation.num_rows(spec.batch.seq_len))
        batch = read_step(reader, eval_rows_at(spec.rank, num_rows, spec.batch), done)
        loss_sum = self._engine.evaluate(batch.micro)
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


def peak_resident_bytes() -> int:
    """The process's own high-water mark; getrusage would count the zygote it was forked from."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Agreement:
    """All ranks leave after the same step: a flag's maximum over the ranks, reduced while the step computes."""

    def __init__(self, world_size: int) -> None:
        self._group = dist.new_group(backend="gloo") if world_size > 1 else None

    def vote(self, wants: bool) -> "Vote":
        flag = torch.tensor([int(wants)], dtype=torch.int32)
        if self._group is None:
            return Vote(flag, None)
        return Vote(flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True))


class Vote:
    def __init__(self, flag: torch.Tensor, work: dist.Work | None) -> None:
        self._flag = flag
        self._work = work

    def outcome(self) -> bool:
        if self._work is not None:
            self._work.wait()
        return bool(self._flag.item())
