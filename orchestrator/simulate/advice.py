"""How often to take snapshots and checkpoints, from what a simulation has measured. Plan half.

Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps" (2006), after Young (1974): with
a mean time between failures M and a cost C of each, W = sqrt(2 C M) (1 + sqrt(C / 2M) / 3 + C / 18M) - C of training
between two of them is lost least to both; for C >= 2M, W = M.
"""

import math
from dataclasses import dataclass

from orchestrator.simulate.costs import Costs


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    snapshot_every_steps: int
    checkpoint_every_steps: int
    failures_interval_s: float
    """Mean time between failures of any kind."""
    storage_interval_s: float
    """Mean time between those that only storage helps against; at least, where there was none."""
    is_storage_bound: bool
    """Checkpoints could pay more often than storage takes them."""


def daly_interval_s(cost_s: float, interval_s: float) -> float:
    """Seconds of training between two snapshots that cost `cost_s` each; `interval_s` lie between two failures."""
    if cost_s >= 2 * interval_s:
        return interval_s
    ratio = cost_s / (2 * interval_s)
    return math.sqrt(2 * cost_s * interval_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_s


def advise(costs: Costs, *, wall_s: float, failures: int, from_storage: int) -> Advice:
    """After `wall_s` of a run with so many failures, of which so many went back to storage."""
    failures_interval_s = wall_s / max(1, failures)
    storage_interval_s = wall_s / max(1, from_storage)
    snapshot_s = daly_interval_s(costs.stall_s, failures_interval_s)
    checkpoint_s = daly_interval_s(costs.persist_stall_s, storage_interval_s)
    takes_s = 2 * (costs.seal_s + costs.persist_s + costs.commit_s)  # never busy for more than half of the time
    return Advice(
        snapshot_every_steps=max(1, round(snapshot_s / costs.step_s)),
        checkpoint_every_steps=max(1, math.ceil(max(checkpoint_s, takes_s) / costs.step_s)),
        failures_interval_s=failures_interval_s,
        storage_interval_s=storage_interval_s,
        is_storage_bound=takes_s > checkpoint_s,
    )
