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


STORE_S = 1.0
"""To open, flush and commit, whatever the size."""
STALL_SHARE = 0.01
"""Of a checkpoint's transfer: what its writers, beside the steps, take from these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointTime:
    """Of one checkpoint, at the assumed rates; seconds."""

    bytes_per_s: float
    """Between all nodes and the store."""
    write_s: float
    """From a sealed snapshot to all payloads in storage, beside the steps."""
    read_s: float
    """Every byte is verified, then read."""
    stall_s: float
    """What it adds to the steps meanwhile."""


def checkpoint_time(num_bytes: int, nodes: int) -> CheckpointTime:
    rate = min(STORE_BYTES_PER_S, NETWORK_BYTES_PER_S * nodes)
    transfer_s = num_bytes / rate
    return CheckpointTime(
        bytes_per_s=rate,
        write_s=STORE_S + transfer_s,
        read_s=STORE_S + 2 * transfer_s,
        stall_s=STALL_SHARE * transfer_s,
    )


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
    checkpoint = checkpoint_time(state_bytes, nodes)
    return Costs(
        step_s=step_s,
        stall_s=0.001 + 0.05 * seal_s,  # the small state, and memory traffic beside the step
        seal_s=seal_s,
        copy_s=node_bytes / NETWORK_BYTES_PER_S,
        persist_s=checkpoint.write_s,
        persist_stall_s=checkpoint.stall_s,
        commit_s=0.05 + 0.0002 * ranks,
        load_s=checkpoint.read_s,
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
