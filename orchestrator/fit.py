"""The fastest way to train a model on given accelerators, or on CPUs whose memory is given. Plan half.

Every stage, micro-batch, recomputation and offload that fits is timed by `steptime` and ranked.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from model.hardware import ACCELERATORS
from orchestrator.config import Offload, RunConfig
from orchestrator.errors import ConfigError
from orchestrator.memory import STAGES, RankLoad, fillable_bytes, fillable_words, gigabytes, held_bytes, rank_memory
from orchestrator.plan import memory_limit_bytes, rank_load
from orchestrator.probe import Probe
from orchestrator.spec import RunPlan, StepTime
from orchestrator.steptime import ranks_per_node, speeds_for, step_time

OFFLOADS = {0: (Offload.none,), 1: (Offload.none, Offload.optimizer), 2: (Offload.none, Offload.optimizer)}
"""What each stage can offload; stage 3 can do all but NVMe, which needs a path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """One way that fits."""

    load: RankLoad
    memory_bytes: int
    """Of one rank's device, at its peak."""
    micro_steps: int
    time: StepTime

    def overrides(self) -> dict[str, str]:
        """What to add to the command."""
        return {
            "parallel.zero_stage": str(self.load.zero_stage),
            "train.micro_batch_size": str(self.load.micro_batch_size),
            "parallel.activation_checkpointing": str(self.load.activation_checkpointing).lower(),
            "parallel.offload": self.load.offload.value,
        }


def fits(config: RunConfig, plan: RunPlan, probe: Probe | None = None) -> list[Fit]:
    """All ways that fit, the fastest first. Raises ConfigError where none does, with the least that is needed, and
    where the device's memory or speed is not known."""
    whole = rank_load(config, plan.model, device=plan.device)
    speeds, memory = speeds_for(config, whole, probe), memory_limit_bytes(config, device=plan.device)
    if speeds is None or memory is None:
        raise ConfigError(_unknown(config, plan))
    limit = fillable_bytes(memory, plan.device)
    found, least = [], None
    for load in _candidates(whole, plan.batch.global_batch_size):
        needed = held_bytes(rank_memory(load), load.device)
        least = needed if least is None else min(least, needed)
        if needed > limit:
            continue
        micro_steps = plan.batch.global_batch_size // (load.micro_batch_size * load.world_size)
        time = step_time(
            load,
            speeds,
            parameters=plan.parameters,
            flops_per_token=plan.flops_per_token,
            micro_steps=micro_steps,
            per_node=ranks_per_node(config),
        )
        found.append(Fit(load=load, memory_bytes=needed, micro_steps=micro_steps, time=time))
    if not found:
        raise ConfigError(
            f"{plan.model.name} does not fit {plan.batch.world_size} x {config.cluster.hardware or plan.device}: the "
            f"leanest way needs {gigabytes(least or 0)} per rank, {fillable_words(memory, plan.device)}; use more "
            "workers (cluster.num_workers), a smaller model or a shorter train.seq_len"
        )
    # Equal times: the one that leaves more memory, then the lower stage, which has fewer moving parts.
    return sorted(found, key=lambda fit: (round(fit.time.total, 6), fit.memory_bytes, fit.load.zero_stage))


def _unknown(config: RunConfig, plan: RunPlan) -> str:
    if config.cluster.hardware is None:
        return (
            "--fit needs to know the accelerator: cluster.hardware=null; use cluster.hardware="
            f"{' or '.join(ACCELERATORS)}, or a cluster that names one (phalanx list clusters); on CPUs say what a "
            "rank may use: cluster.memory_bytes_per_worker=4000000000"
        )
    return (
        f"--fit knows nothing of train.precision={plan.precision} on cluster.hardware={config.cluster.hardware}; "
        "use train=bf16"
    )


def _candidates(load: RankLoad, global_batch_size: int) -> Iterator[RankLoad]:
    per_rank = global_batch_size // load.world_size
    sizes = [size for size in range(1, per_rank + 1) if per_rank % size == 0]
    for stage in STAGES:
        if stage == 0 and load.precision.value == "bf16":
            continue  # DeepSpeed gets it wrong: refused by validate
        for offload in OFFLOADS.get(stage, (Offload.none, Offload.optimizer, Offload.params)):
            for is_checkpointed in (False, True):
                for size in sizes:
                    yield replace(
                        load,
                        zero_stage=stage,
                        offload=offload,
                        activation_checkpointing=is_checkpointed,
                        micro_batch_size=size,
                    )
