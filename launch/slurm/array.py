"""A job array's `--array`, and what of a sweep can be one. Plan half."""

from collections.abc import Iterator, Sequence

from orchestrator.config import RunConfig
from orchestrator.sweep.settings import Algorithm, Pruner, SweepConfig

_LEARNING = frozenset({Algorithm.tpe, Algorithm.gp, Algorithm.cmaes, Algorithm.pbt})


def array_text(tasks: Sequence[int], limit: int | None) -> str:
    """`0-2,5,7-8%4`: these tasks, so many at a time."""
    runs: list[list[int]] = []
    for task in sorted(tasks):
        if runs and task == runs[-1][-1] + 1:
            runs[-1].append(task)
        else:
            runs.append([task])
    words = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ",".join(words) + ("" if limit is None else f"%{limit}")


def array_problems(settings: SweepConfig, algorithm: Algorithm, configs: Sequence[RunConfig]) -> Iterator[str]:
    """Why a sweep can't be a job array, one sentence each; `configs` of all trials that are known."""
    way_out = "or let all trials share one Ray: cluster.address=HOST:PORT"
    if algorithm in _LEARNING:
        yield (
            f"sweep.algorithm={algorithm} learns from results, which the tasks of a job array don't wait for; use "
            f"grid, random or quasi_random, {way_out}"
        )
    if settings.pruner is not Pruner.none:
        yield (
            f"sweep.pruner={settings.pruner} compares trials while they run, which nobody does for a job array; use "
            f"sweep.pruner=none, {way_out}"
        )
    if any(config.cluster != configs[0].cluster for config in configs):
        yield (
            "the tasks of a job array are alike, and cluster.* differs between trials; search something else, "
            f"{way_out}"
        )
