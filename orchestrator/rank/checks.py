"""A rank looks for silent corruption: bits that changed without an error.

Two looks, each at an interval of its own. Replicas: what every rank holds alike (the parameters, in ZeRO stages 0 to
2) has the same checksum on all of them; taken between the last backward pass and the update, so that it covers all in
which they were used. Repetition: a step is done again from the snapshot before it, and must come to the same bits.
"""

from collections.abc import Callable

import torch
from torch import distributed as dist

from model.engine import Engine, StepResult
from orchestrator.control.anomalies import Anomaly, Kind, compare_replicas
from orchestrator.data.batches import StepBatch
from orchestrator.rank.progress import Progress
from orchestrator.rank.snapshots import Snapshots
from orchestrator.rank.voting import Agreement
from orchestrator.spec import WorkerSpec


class ReplicaCheck:
    def __init__(self, spec: WorkerSpec, engine: Engine, agreement: Agreement, progress: Progress) -> None:
        self._every = spec.fault.check_replicas_every_steps if spec.world_size > 1 else 0
        self._engine = engine
        self._agreement = agreement
        self._progress = progress
        self._good_step = spec.resume.step
        """The newest step of which the replicas agreed; what was restored came from one copy."""
        self._gathered: tuple[list[torch.Tensor], dist.Work] | None = None

    def begin(self, done: int) -> None:
        """Before the update that makes step `done`, where it is due."""
        if self._every and done % self._every == 0:
            self._gathered = self._agreement.gather(signed(self._engine.replica_checksum()))

    def verdict(self, done: int) -> Anomaly | None:
        """After the update; the same on every rank."""
        gathered, self._gathered = self._gathered, None
        if gathered is None:
            return None
        checksums, work = gathered
        with self._progress.collective():
            work.wait()
        anomaly = compare_replicas([int(checksum) for checksum in checksums], done, self._good_step)
        if anomaly is None:
            self._good_step = done
        return anomaly


class Repetition:
    def __init__(
        self, spec: WorkerSpec, engine: Engine, snapshots: Snapshots, agreement: Agreement, progress: Progress
    ) -> None:
        self._every = spec.fault.recheck_every_steps
        self._engine = engine
        self._snapshots = snapshots
        self._agreement = agreement
        self._progress = progress

    def is_due(self, done: int, common_step: int) -> bool:
        """`common_step`: of which every rank has a snapshot; the first step of an attempt may have none before it."""
        return self._every > 0 and done % self._every == 0 and common_step == done - 1

    def verdict(
        self, done: int, batch: StepBatch, lr: float, result: StepResult, on_micro_step: Callable[[int], None]
    ) -> Anomaly | None:
        """Do step `done` again from the snapshot before it; the state is the same afterwards, or bad."""
        engine = self._engine
        before = engine.state_checksum()
        self._snapshots.restore_again(done - 1)
        again = engine.train_step(done - 1, batch.micro, lr, lambda loss_sum: None, on_micro_step)
        same_results = (again.loss_sum, again.grad_norm) == (result.loss_sum, result.grad_norm)
        is_same = torch.tensor([int(same_results and engine.state_checksum() == before)])
        work = self._agreement.minimum(is_same)
        if work is not None:
            with self._progress.collective():
                work.wait()
        if is_same.item():
            return None
        words = "done again from the snapshot before it, it came to other bits"
        return Anomaly(Kind.step_not_repeatable, done, done - 1, words)


def signed(checksum: int) -> torch.Tensor:
    """64 unsigned bits as int64 [1], which collectives know."""
    return torch.tensor([checksum - (1 << 64) if checksum >= 1 << 63 else checksum])
