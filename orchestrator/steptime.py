"""How long a step takes: a roofline over compute, memory and links. Plan half: arithmetic only.

An estimate to compare plans with, before there is a measurement; a report sets it beside what was measured. Known
accelerators: matrix products reach MATMUL_EFFICIENCY of the data sheet's peak, links reach LINK_EFFICIENCY, and
OVERLAPPED of the backward pass hides what it can of ZeRO's communication. A CPU: as `phalanx doctor --probe` has
measured it, else assumed; it moves its activations through memory and hides nothing. Volumes are those of the ZeRO
paper (arXiv 1910.02054, section 7): 2 x parameters per step at stages 0 to 2, 3 x at stage 3; gathers of stage 3 come
with each micro-step.
"""

from dataclasses import dataclass

from model.hardware import ACCELERATORS, Accelerator
from orchestrator.config import Offload, Precision, RunConfig
from orchestrator.memory import FP32_BYTES, RankLoad, activation_bytes, dtype_bytes, logits_bytes
from orchestrator.probe import Probe, matmul_rate
from orchestrator.spec import Predicted, RunPlan, StepTime, TimeSource

MATMUL_EFFICIENCY = 0.5
"""Of the peak: well-tuned dense Transformers report 0.4 to 0.55 for the whole step."""
LINK_EFFICIENCY = 0.7
OVERLAPPED = 0.8
"""Share of the backward pass behind which DeepSpeed's overlap_comm can hide communication."""
HOST_BYTES_PER_S = 10e9
"""Of one rank's share of host memory, in which an offloaded optimizer steps."""
HOST_LINK_BYTES_PER_S = 25e9
"""Between a device and its host: PCIe 4 x16, one direction."""
CPU_FLOPS_PER_S = 20e9
"""Of each thread in fp32, where nobody has measured: half of what a core with AVX2 can do at 3 GHz, less what small
products leave unused."""
CPU_LINK_BYTES_PER_S = 1e9
"""gloo over the loopback, where nobody has measured."""
CPU_PASSES = 5
"""How often a CPU moves an activation through memory: written and read forward, read backward, its gradient written
and read."""
CPU_OVERHEAD_S = {0: 0.008, 1: 0.018, 2: 0.018, 3: 0.026}
"""By ZeRO stage: Python, DeepSpeed and gloo's calls, as measured with 0.1 M parameters on two ranks."""
PROBE_COMMAND = "phalanx doctor --probe"


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeds:
    """What one rank's device reaches on this load."""

    flops_per_s: float
    memory_bytes_per_s: float
    node_link_bytes_per_s: float
    network_bytes_per_s: float
    overlapped: float
    """Share of the backward pass behind which communication hides."""
    activation_passes: int
    """How often activations go through memory beside the products; 0 where fused kernels hide them."""
    source: TimeSource
    basis: str


def table_speeds(name: str) -> Speeds:
    accelerator: Accelerator = ACCELERATORS[name]
    return Speeds(
        flops_per_s=accelerator.peak_flops * MATMUL_EFFICIENCY,
        memory_bytes_per_s=accelerator.bandwidth_bytes_per_s,
        node_link_bytes_per_s=accelerator.node_link_bytes_per_s * LINK_EFFICIENCY,
        network_bytes_per_s=accelerator.network_bytes_per_s * LINK_EFFICIENCY,
        overlapped=OVERLAPPED,
        activation_passes=0,
        source=TimeSource.table,
        basis=f"data sheet of {name}, at {MATMUL_EFFICIENCY:.0%} of its peak",
    )


def cpu_speeds(load: RankLoad, threads: int, probe: Probe | None) -> Speeds | None:
    """None in a precision of which nothing is known."""
    rates = None if probe is None else probe.at(threads)
    measured = None if rates is None else matmul_rate(rates, load.precision, load.model.hidden_size)
    if probe is not None and rates is not None and measured is not None:
        return Speeds(
            flops_per_s=measured,
            memory_bytes_per_s=rates.memory_bytes_per_s,
            node_link_bytes_per_s=probe.link_bytes_per_s,
            network_bytes_per_s=probe.link_bytes_per_s,
            overlapped=0.0,
            activation_passes=CPU_PASSES,
            source=TimeSource.probe,
            basis=f"probe of {probe.host}, {probe.date[:10]}",
        )
    if load.precision is not Precision.fp32:
        return None
    return Speeds(
        flops_per_s=CPU_FLOPS_PER_S * threads,
        memory_bytes_per_s=HOST_BYTES_PER_S,
        node_link_bytes_per_s=CPU_LINK_BYTES_PER_S,
        network_bytes_per_s=CPU_LINK_BYTES_PER_S,
        overlapped=0.0,
        activation_passes=CPU_PASSES,
        source=TimeSource.assumption,
        basis=f"assumption of {CPU_FLOPS_PER_S / 1e9:g} GFLOP/s a thread; measure it: {PROBE_COMMAND}",
    )


def speeds_for(config: RunConfig, load: RankLoad, probe: Probe | None) -> Speeds | None:
    """Of the device that `load` names; None where nothing is known: no accelerator named, or fp32 on one, whose peak
    the table lacks."""
    if load.device == "cpu":
        return cpu_speeds(load, config.worker.threads or config.cluster.cpus_per_worker, probe)
    if config.cluster.hardware is None or load.precision is Precision.fp32:
        return None
    return table_speeds(config.cluster.hardware)


def predicted(
    config: RunConfig,
    load: RankLoad,
    probe: Probe | None,
    *,
    parameters: int,
    flops_per_token: int,
    micro_steps: int,
) -> Predicted | None:
    """Of a step; None where nothing is known of the device."""
    speeds = speeds_for(config, load, probe)
    if speeds is None:
        return None
    time = step_time(
        load,
        speeds,
        parameters=parameters,
        flops_per_token=flops_per_token,
        micro_steps=micro_steps,
        per_node=ranks_per_node(config),
    )
    return Predicted(time=time, source=speeds.source, basis=speeds.basis)


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
    speeds: Speeds,
    *,
    parameters: int,
    flops_per_token: int,
    micro_steps: int,
    per_node: int,
) -> StepTime:
    """Of `load` with `micro_steps` passes on each rank, `per_node` ranks to a node."""
    tokens = load.micro_batch_size * load.seq_len * micro_steps
    moved = speeds.activation_passes * (activation_bytes(load) + logits_bytes(load)) * micro_steps
    forward_backward = tokens * flops_per_token / speeds.flops_per_s + moved / speeds.memory_bytes_per_s
    hidden_behind = speeds.overlapped * forward_backward * 2 / 3
    volume_s = _communication_s(load, speeds, parameters, micro_steps, per_node)
    return StepTime(
        forward_backward=forward_backward,
        recompute=forward_backward / 3 if load.activation_checkpointing else 0.0,
        communication=max(0.0, volume_s - hidden_behind),
        update=_update_s(load, speeds, parameters, micro_steps),
        overhead=CPU_OVERHEAD_S[load.zero_stage] if load.device == "cpu" else 0.0,
    )


def _communication_s(load: RankLoad, speeds: Speeds, parameters: int, micro_steps: int, per_node: int) -> float:
    """Ring collectives: (n - 1) / n of the volume passes each rank. Into a node each byte comes once, spread over all
    its ranks' adapters, and goes round inside."""
    world_size = load.world_size
    if world_size == 1:
        return 0.0
    link = speeds.node_link_bytes_per_s
    if world_size > per_node:
        link = min(link, per_node * speeds.network_bytes_per_s)
    width = dtype_bytes(load.precision)
    # Stage 2 reduces the gradients of each micro-step, stages 0 and 1 only the sum of all.
    passes = {0: 2, 1: 2, 2: micro_steps + 1, 3: 3 * micro_steps}[load.zero_stage]
    return passes * parameters * width * (world_size - 1) / world_size / link


def _update_s(load: RankLoad, speeds: Speeds, parameters: int, micro_steps: int) -> float:
    """Adam reads and writes masters and moments, reads gradients and writes low-precision weights."""
    part = parameters if load.zero_stage == 0 else -(-parameters // load.world_size)
    width = dtype_bytes(load.precision)
    touched = part * (2 * FP32_BYTES * (1 + load.moments) + 2 * width)
    if load.offload is Offload.none or load.device == "cpu":
        return touched / speeds.memory_bytes_per_s
    transfers = part * 2 * width
    if load.offload in (Offload.params, Offload.nvme):
        transfers += 2 * parameters // load.world_size * width * micro_steps
    return touched / HOST_BYTES_PER_S + transfers / HOST_LINK_BYTES_PER_S
