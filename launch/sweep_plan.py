"""What a sweep would cost: its trials planned one by one, before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launch.plan import manifest_if_any, planned_device
from launch.plan_text import total_flops, total_tokens
from launch.sweep_words import SweepWords
from orchestrator.data.manifest import Manifest
from orchestrator.memory import gigabytes, held_bytes
from orchestrator.observe.aligned import aligned
from orchestrator.observe.units import count_text, flops_text
from orchestrator.plan import memory_refusal, plan_run
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


def trial_costs(read: SweepWords, ids: Mapping[str, Parameters]) -> list[TrialCost]:
    """The cost of each trial with id and parameters. Raises ConfigError where one can't be planned."""
    manifests: dict[str | None, Manifest | None] = {}
    costs = []
    for name, parameters in ids.items():
        config = read.compose(parameters)
        if config.data.path not in manifests:
            manifests[config.data.path] = manifest_if_any(config)[0]
        plan = plan_run(config, manifests[config.data.path], device=planned_device(config))
        memory = held_bytes(plan.memory_by_stage[plan.zero_stage], plan.device)
        workers = plan.batch.world_size
        refusal = memory_refusal(config, plan)
        costs.append(
            TrialCost(name, parameters, workers, plan.steps, total_tokens(plan), total_flops(plan), memory, refusal)
        )
    return costs


def preview_lines(read: SweepWords, costs: Sequence[TrialCost], sweep_id: str, rungs: Rungs) -> list[str]:
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
    header = ("TRIAL", "WORKERS", "STEPS", "TOKENS", "FLOPS", "MEMORY/RANK", "PARAMETERS")
    lines += aligned([header, *(_cells(cost) for cost in costs[:MAX_ROWS])])
    if len(costs) > MAX_ROWS:
        lines.append(f"... and {len(costs) - MAX_ROWS} more")
    count = len(costs) if is_grid else settings.population if is_population else settings.trials
    largest = max(costs, key=lambda cost: cost.flops)
    total = sum(cost.flops for cost in costs) if is_grid else largest.flops * count
    tokens = sum(cost.tokens for cost in costs) if is_grid else largest.tokens * count
    bound = "" if is_grid and settings.pruner == "none" else "at most "
    lines.append(f"together    {bound}{count_text(tokens)} tokens, {flops_text(total)}")
    lines += [f"too large   {cost.trial}: {cost.refusal}" for cost in costs if cost.refusal]
    return lines


def preview_json(read: SweepWords, costs: Sequence[TrialCost], sweep_id: str) -> dict[str, Any]:
    return {
        "sweep": sweep_id,
        "algorithm": str(read.algorithm),
        "pruner": str(read.settings.pruner),
        "space": {dimension.key: dimension_text(dimension) for dimension in read.space},
        "trials": [asdict(cost) for cost in costs],
    }


def _cells(cost: TrialCost) -> tuple[str, ...]:
    return (
        cost.trial,
        str(cost.workers),
        f"{cost.steps:,}",
        count_text(cost.tokens),
        flops_text(cost.flops),
        gigabytes(cost.memory_bytes),
        " ".join(parameter_words(cost.parameters)),
    )
