"""How long things take in a simulated run, from a plan. Plan half.

Rates that nobody has measured on the machines in question are assumptions, printed with every prediction; what was
measured on a CPU (FACTS) is said so.
"""

from dataclasses import dataclass

from orchestrator.errors import ConfigError
from orchestrator.spec import Placement, RunPlan

BYTES_PER_PARAMETER = 12
"""fp32 master and two moments."""
PCIE_BYTES_PER_S = 25e9
"""Device to host, of each GPU."""
NETWORK_BYTES_PER_S = 25e9
"""Of each node, to its peer: half of one 400 Gb/s port."""
STORE_BYTES_PER_S = 100e9
"""Of the whole store, and never more than a node's network each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Seconds."""

    step_s: float
    stall_s: float
    """What a snapshot adds to the step during which it is copied."""
    seal_s: float
    """From the end of a step to its sealed snapshot."""
    copy_s: float
    """From there to the copy in the peer's memory."""
    persist_s: float
    """From the sealed snapshot to all payloads in storage."""
    persist_stall_s: float
    """What a checkpoint adds to the steps during which it is written: nothing while the writers find idle cores."""
    commit_s: float
    load_s: float
    """To verify a checkpoint and read it."""
    restore_s: float
    """From a slot of the agent's memory."""
    fetch_s: float
    """A lost node's slots from its peer."""
    start_s: float
    """From the fork to the first step: the process group and the engine."""
    agent_s: float
    """A new agent's imports."""
    call_s: float = 0.002
    """A call to all agents."""
    stop_s: float = 0.05
    rank_death_s: float = 0.03
    """Until an agent has seen that a rank is dead (measured on a CPU)."""
    node_death_s: float = 10.0
    """Until the cluster has told the driver that a node is gone."""
    driver_s: float = 30.0
    """From the command to the driver's first call."""
    place_s: float = 5.0
    """Until another node takes a lost one's place, where one is free."""


def costs_of(plan: RunPlan, placement: Placement, *, step_s: float | None = None) -> Costs:
    """`step_s=None`: as `phalanx plan` predicts it. Raises ConfigError where it can't."""
    ranks, nodes = len(placement.ranks), len(placement.bundles)
    if step_s is None:
        step_s = predicted_step_s(plan)
    state_bytes = plan.parameters * BYTES_PER_PARAMETER
    node_bytes = state_bytes / nodes
    seal_s = state_bytes / ranks / PCIE_BYTES_PER_S
    store_bytes_per_s = min(STORE_BYTES_PER_S, NETWORK_BYTES_PER_S * nodes)
    return Costs(
        step_s=step_s,
        stall_s=0.001 + 0.05 * seal_s,  # the small state, and memory traffic beside the step
        seal_s=seal_s,
        copy_s=node_bytes / NETWORK_BYTES_PER_S,
        persist_s=1.0 + state_bytes / store_bytes_per_s,
        persist_stall_s=0.01 * state_bytes / store_bytes_per_s,
        commit_s=0.05 + 0.0002 * ranks,
        load_s=1.0 + 2 * state_bytes / store_bytes_per_s,  # every byte is verified, then read
        restore_s=0.05 + seal_s,
        fetch_s=node_bytes / NETWORK_BYTES_PER_S,
        start_s=0.4 + 0.003 * ranks,  # a process group of thousands of GPUs takes tens of seconds
        agent_s=15.0,
    )


def predicted_step_s(plan: RunPlan) -> float:
    if plan.predicted is None:
        raise ConfigError(
            f"nothing is known of how fast {plan.device} is at train.precision={plan.precision}; say how long a step "
            "takes (--step-s), or name the accelerator (cluster.hardware) and use train=bf16"
        )
    return plan.predicted.time.total
