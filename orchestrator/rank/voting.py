"""What all ranks agree on at each step boundary, beside the update: who leaves, what is kept, the loss."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed as dist

from orchestrator.agent.watchdog import Phase
from orchestrator.rank.inbox import Asked, Inbox
from orchestrator.rank.progress import Progress
from orchestrator.rank.snapshots import Snapshots


class Agreement:
    """What all ranks must know of each other at a step boundary, reduced while the update is made."""

    def __init__(self, world_size: int) -> None:
        self._group = dist.new_group(backend="gloo") if world_size > 1 else None

    def minimum(self, values: torch.Tensor) -> dist.Work | None:
        """Begin to replace `values` (int64) by their minimum over the ranks."""
        if self._group is None:
            return None
        return dist.all_reduce(values, op=dist.ReduceOp.MIN, group=self._group, async_op=True)

    def sum(self, values: torch.Tensor) -> dist.Work | None:
        """Begin to replace `values` by their sum over the ranks: the same bits on all of them."""
        if self._group is None:
            return None
        return dist.all_reduce(values, group=self._group, async_op=True)

    def gather(self, value: torch.Tensor) -> tuple[list[torch.Tensor], dist.Work]:
        """Begin to gather every rank's `value`, in rank order; there must be more than one rank."""
        values = [torch.empty_like(value) for _ in range(dist.get_world_size(self._group))]
        work = dist.all_gather(values, value, group=self._group, async_op=True)
        assert work is not None
        return values, work


@dataclass(frozen=True, slots=True)
class Vote:
    """What all ranks know after a step."""

    is_leaving: bool
    """Somebody was asked to drain."""
    is_pausing: bool
    """Somebody was asked to leave, but nobody to drain."""
    snapshots: tuple[int, ...]
    """The minimum of every rank's `Snapshots.votes`."""
    loss_sum: float
    """Over the global batch."""

    @property
    def common_step(self) -> int:
        """The newest step of which every rank has sealed its snapshot."""
        return self.snapshots[0]


class Ballot:
    """Each step's vote: whether anybody was asked to leave, the newest snapshot that every rank has, and the loss."""

    def __init__(self, agreement: Agreement, inbox: Inbox, snapshots: Snapshots, progress: Progress) -> None:
        self.stall_s = 0.0
        """How long the update waited for the snapshot of the step before."""
        self._agreement = agreement
        self._inbox = inbox
        self._snapshots = snapshots
        self._progress = progress
        self._values = np.zeros(5, dtype=np.int64)
        self._loss_sum = np.zeros(1, dtype=np.float64)
        self._shared = torch.from_numpy(self._values), torch.from_numpy(self._loss_sum)
        """The same memory; numpy reads and writes single numbers in a tenth of torch's time."""
        self._works: list[dist.Work | None] = []

    def cast(self, loss_sum: float) -> None:
        """Before the update: the snapshot of the step before is whole from here on."""
        self._progress.enter(Phase.snapshot)
        self.stall_s = self._snapshots.wait()
        self._inbox.look()
        self._values[0] = -int(self._inbox.asked)
        self._values[1:] = self._snapshots.votes()
        self._loss_sum[0] = loss_sum
        values, loss_sums = self._shared
        self._works = [self._agreement.minimum(values), self._agreement.sum(loss_sums)]
        self._progress.enter(Phase.update)

    def outcome(self) -> Vote:
        """After the update."""
        self._progress.enter(Phase.vote)
        for work in self._works:
            if work is not None:
                with self._progress.collective():
                    work.wait()
        asked, *snapshots = self._values.tolist()
        return Vote(asked == -Asked.drain, asked == -Asked.pause, tuple(snapshots), float(self._loss_sum[0]))
