"""How long a step takes on known accelerators: a roofline over compute, memory and links. Plan half: arithmetic only.

An estimate to compare plans with, before there is a measurement; a report sets it beside what was measured. Assumed:
matrix products reach MATMUL_EFFICIENCY of the peak; links reach LINK_EFFICIENCY of their data sheet; of ZeRO's
communication, OVERLAPPED of the backward pass hides what it can. Volumes are those of the ZeRO paper (arXiv
1910.02054, section 7): 2 x parameters per step at stages 0 to 2, 3 x at stage 3; gathers of stage 3 come with each
micro-step.
"""

from dataclasses import dataclass

from model.hardware import ACCELERATORS, Accelerator
from orchestrator.config import Offload, Precision, RunConfig
from orchestrator.memory import FP32_BYTES, RankLoad, dtype_bytes
from orchestrator.plan import rank_load
from orchestrator.spec import RunPlan

MATMUL_EFFICIENCY = 0.5
"""Of the peak: well-tuned dense Transformers report 0.4 to 0.55 for the whole step."""
LINK_EFFICIENCY = 0.7
OVERLAPPED = 0.8
"""Share of the backward pass behind which DeepSpeed's overlap_comm can hide communication."""
HOST_BYTES_PER_S = 10e9
"""Of one rank's share of host memory, in which an offloaded optimizer steps."""
HOST_LINK_BYTES_PER_S = 25e9
"""Between a device and its host: PCIe 4 x16, one direction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of one optimizer step on its slowest rank, by what they go into; they add up."""

    forward_backward: float
    recompute: float
    """Activation checkpointing's second forward pass."""
    communication: float
    """What no backward pass hides."""
    update: float
    """The optimizer's reads and writes, and offload's transfers."""

    @property
    def total(self) -> float:
        return self.forward_backward + self.recompute + self.communication + self.update


def planned_step_time(config: RunConfig, plan: RunPlan) -> StepTime | None:
    """Of a plan; None where its accelerator is not known, or where its peak is not the table's (fp32)."""
    if plan.peak_flops_per_worker is None or plan.precision is Precision.fp32:
        return None
    return step_time(
        rank_load(config, plan.model, device=plan.device),
        ACCELERATORS[config.cluster.hardware or ""],
        parameters=plan.parameters,
        flops_per_token=plan.flops_per_token,
        micro_steps=plan.batch.micro_steps,
        per_node=ranks_per_node(config),
    )


def ranks_per_node(config: RunConfig) -> int:
    return config.cluster.workers_per_node or config.cluster.num_workers


def model_flops_utilisation(plan: RunPlan, step_s: float) -> float | None:
    """0 to 1; recomputation does not count. None where the peak is not known."""
    if plan.peak_flops_per_worker is None:
        return None
    flops = plan.flops_per_token * plan.batch.tokens_per_step
    return flops / (step_s * plan.peak_flops_per_worker * plan.batch.world_size)


def step_time(
    load: RankLoad,
    accelerator: Accelerator,
    *,
    parameters: int,
    flops_per_token: int,
    micro_steps: int,
    per_node: int,
) -> StepTime:
    """Of `load` with `micro_steps` passes on each rank, `per_node` ranks to a node."""
    tokens = load.micro_batch_size * load.seq_len * micro_steps
    forward_backward = tokens * flops_per_token / (accelerator.peak_flops * MATMUL_EFFICIENCY)
    hidden_behind = OVERLAPPED * forward_backward * 2 / 3
    volume_s = _communication_s(load, accelerator, parameters, micro_steps, per_node)
    return StepTime(
        forward_backward=forward_backward,
        recompute=forward_backward / 3 if load.activation_checkpointing else 0.0,
        communication=max(0.0, volume_s - hidden_behind),
        update=_update_s(load, accelerator, parameters, micro_steps),
    )


def _communication_s(
    load: RankLoad, accelerator: Accelerator, parameters: int, micro_steps: int, per_node: int
) -> float:
    """Ring collectives: (n - 1) / n of the volume passes each rank. Into a node each byte comes once, spread over all
    its ranks' adapters, and goes round inside."""
    world_size = load.world_size
    if world_size == 1:
        return 0.0
    link = accelerator.node_link_bytes_per_s
    if world_size > per_node:
        link = min(link, per_node * accelerator.network_bytes_per_s)
    width = dtype_bytes(load.precision)
    # Stage 2 reduces the gradients of each micro-step, stages 0 and 1 only the sum of all.
    passes = {0: 2, 1: 2, 2: micro_steps + 1, 3: 3 * micro_steps}[load.zero_stage]
    return passes * parameters * width * (world_size - 1) / world_size / (link * LINK_EFFICIENCY)


def _update_s(load: RankLoad, accelerator: Accelerator, parameters: int, micro_steps: int) -> float:
    """Adam reads and writes masters and moments, reads gradients and writes low-precision weights."""
    part = parameters if load.zero_stage == 0 else -(-parameters // load.world_size)
    width = dtype_bytes(load.precision)
    touched = part * (2 * FP32_BYTES * (1 + load.moments) + 2 * width)
    if load.offload is Offload.none:
        return touched / accelerator.bandwidth_bytes_per_s
    transfers = part * 2 * width
    if load.offload in (Offload.params, Offload.nvme):
        transfers += 2 * parameters // load.world_size * width * micro_steps
    return touched / HOST_BYTES_PER_S + transfers / HOST_LINK_BYTES_PER_S
