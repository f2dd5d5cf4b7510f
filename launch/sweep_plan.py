"""What a sweep would cost: its trials planned one by one, before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from heapq import heapreplace
from typing import Any

from launch.plan import manifest_if_any, planned_device
from launch.plan_text import hours_words, total_flops, total_tokens
from launch.sweep_words import SweepWords
from orchestrator.data.manifest import Manifest
from orchestrator.doctor.proberecord import recorded_probe
from orchestrator.errors import PlacementError
from orchestrator.memory import gigabytes, held_bytes
from orchestrator.observe.aligned import aligned
from orchestrator.observe.units import count_text, duration_text, flops_text
from orchestrator.plan import memory_refusal, plan_run
from orchestrator.spec import NodeFacts
from orchestrator.sweep.packing import concurrency, gang_of
from orchestrator.sweep.pbt import interval_steps, num_rounds
from orchestrator.sweep.pruning import Rungs
from orchestrator.sweep.settings import Algorithm
from orchestrator.sweep.space import Parameters, dimension_text, parameter_words
from orchestrator.sweep.wording import pruning_text

MAX_ROWS = 50
"""So many trials are listed, the rest is counted."""


@dataclass(frozen=True, slots=True)
class TrialCost:
    trial: str
    parameters: Parameters
    workers: int
    steps: int
    tokens: int
    flops: int
    memory_bytes: int
    """Of one rank at its peak."""
    refusal: str | None
    """Where that is more than a rank has."""
    device: str
    time_s: float | None
    """Of its steps, as `phalanx plan` predicts it; None where nothing is known of the device."""

    @property
    def device_hours(self) -> float | None:
        return None if self.time_s is None else self.workers * self.time_s / 3600


@dataclass(frozen=True, slots=True)
class SweepCost:
    """Of all trials; where pruning may end some, or the search chooses them within the space, at most so much."""

    tokens: int
    flops: int
    concurrency: int | None
    """Trials at a time; None: as many as fit a cluster that is not asked here."""
    time_s: float | None
    """At that concurrency, else one after the other."""
    device_hours: float | None


def trials_at_once(read: SweepWords, nodes: Sequence[NodeFacts] | None) -> int | None:
    """How many of the widest trials fit `nodes`, at most sweep.max_concurrent; that, where nodes are not known."""
    limit = read.settings.max_concurrent
    if nodes is None:
        return limit
    configs = map(read.compose, read.trials())
    widest = max(configs, key=lambda config: config.cluster.num_workers * config.cluster.cpus_per_worker)
    try:
        return concurrency(nodes, gang_of(widest, nodes), limit)
    except PlacementError:  # a preview for a larger machine
        return limit


def sweep_cost(read: SweepWords, costs: Sequence[TrialCost], at_once: int | None) -> SweepCost:
    """Of a space without a list each trial costs as much as the dearest of its ends."""
    settings = read.settings
    if read.algorithm is Algorithm.grid:
        times, hours = [cost.time_s for cost in costs], [cost.device_hours for cost in costs]
        tokens, flops = sum(cost.tokens for cost in costs), sum(cost.flops for cost in costs)
    else:
        count = settings.population if read.algorithm is Algorithm.pbt else settings.trials
        largest = max(costs, key=lambda cost: cost.flops)
        tokens, flops = largest.tokens * count, largest.flops * count
        times = [_largest([cost.time_s for cost in costs])] * count
        hours = [_largest([cost.device_hours for cost in costs])] * count
    return SweepCost(
        tokens=tokens,
        flops=flops,
        concurrency=at_once,
        time_s=None if None in times else makespan_s([time for time in times if time is not None], at_once or 1),
        device_hours=None if None in hours else sum(hour for hour in hours if hour is not None),
    )


def makespan_s(times: Sequence[float], at_once: int) -> float:
    """Of trials that start in this order, each when one of `at_once` places is free."""
    free_at = [0.0] * at_once
    for time in times:
        heapreplace(free_at, free_at[0] + time)
    return max(free_at)


def _largest(values: Sequence[float | None]) -> float | None:
    return None if None in values else max(value for value in values if value is not None)


def trial_costs(read: SweepWords, ids: Mapping[str, Parameters]) -> list[TrialCost]:
    """The cost of each trial with id and parameters. Raises ConfigError where one can't be planned."""
    manifests: dict[str | None, Manifest | None] = {}
    costs, probe = [], recorded_probe()
    for name, parameters in ids.items():
        config = read.compose(parameters)
        if config.data.path not in manifests:
            manifests[config.data.path] = manifest_if_any(config)[0]
        plan = plan_run(config, manifests[config.data.path], device=planned_device(config), probe=probe)
        costs.append(
            TrialCost(
                trial=name,
                parameters=parameters,
                workers=plan.batch.world_size,
                steps=plan.steps,
                tokens=total_tokens(plan),
                flops=total_flops(plan),
                memory_bytes=held_bytes(plan.memory_by_stage[plan.zero_stage], plan.device),
                refusal=memory_refusal(config, plan),
                device=plan.device,
                time_s=None if plan.predicted is None else plan.steps * plan.predicted.time.total,
            )
        )
    return costs


def preview_lines(
    read: SweepWords,
    costs: Sequence[TrialCost],
    whole: SweepCost,
    sweep_id: str,
    rungs: Rungs,
    *,
    price_per_hour: float | None = None,
) -> list[str]:
    """The trials and what they cost together; of a space without a list, its ends."""
    settings = read.settings
    is_grid, is_population = read.algorithm is Algorithm.grid, read.algorithm is Algorithm.pbt
    lines = [f"sweep {sweep_id}: {read.algorithm}, {pruning_text(rungs, max(cost.steps for cost in costs))}"]
    lines += [f"  {dimension.key}={dimension_text(dimension)}" for dimension in read.space]
    how_many = f"{len(costs)} trials" if is_grid else f"{settings.trials} trials; the ends of the space:"
    if is_population:
        steps = interval_steps(settings, costs[0].steps)
        rounds = num_rounds(settings, costs[0].steps)
        how_many = f"{settings.population} members, {rounds} rounds of {steps:,} steps each; the ends of the space:"
    lines += ["", how_many]
    header = ("TRIAL", "WORKERS", "STEPS", "TOKENS", "FLOPS", "MEMORY/RANK", "TIME", "PARAMETERS")
    lines += aligned([header, *(_cells(cost) for cost in costs[:MAX_ROWS])])
    if len(costs) > MAX_ROWS:
        lines.append(f"... and {len(costs) - MAX_ROWS} more")
    bound = "" if is_grid and settings.pruner == "none" else "at most "
    lines.append(f"together    {bound}{count_text(whole.tokens)} tokens, {flops_text(whole.flops)}")
    if whole.time_s is not None and whole.device_hours is not None:
        place = "one after the other" if whole.concurrency is None else f"{whole.concurrency:,} at a time"
        hours = hours_words(whole.device_hours, costs[0].device, price_per_hour)
        lines.append(f"time        {bound}{duration_text(whole.time_s)} of steps, {place}: {hours}")
    lines += [f"too large   {cost.trial}: {cost.refusal}" for cost in costs if cost.refusal]
    return lines


def preview_json(
    read: SweepWords,
    costs: Sequence[TrialCost],
    whole: SweepCost,
    sweep_id: str,
    *,
    price_per_hour: float | None = None,
) -> dict[str, Any]:
    hours = whole.device_hours
    return {
        "sweep": sweep_id,
        "algorithm": str(read.algorithm),
        "pruner": str(read.settings.pruner),
        "space": {dimension.key: dimension_text(dimension) for dimension in read.space},
        "trials": [{**asdict(cost), "device_hours": cost.device_hours} for cost in costs],
        "together": {
            **asdict(whole),
            "price": None if hours is None or price_per_hour is None else hours * price_per_hour,
        },
    }


def _cells(cost: TrialCost) -> tuple[str, ...]:
    return (
        cost.trial,
        str(cost.workers),
        f"{cost.steps:,}",
        count_text(cost.tokens),
        flops_text(cost.flops),
        gigabytes(cost.memory_bytes),
        "-" if cost.time_s is None else duration_text(cost.time_s),
        " ".join(parameter_words(cost.parameters)),
    )
