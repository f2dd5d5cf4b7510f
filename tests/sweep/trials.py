"""Trials and studies for tests, written as the records that a driver would have written."""

from typing import Any

from orchestrator.config import RunConfig
from orchestrator.sweep.pruning import rungs_of
from orchestrator.sweep.recipe import Recipe
from orchestrator.sweep.settings import Metric, SweepConfig
from orchestrator.sweep.study import Record, Study, read_study


def recipe_of(base: RunConfig, settings: SweepConfig) -> Recipe:
    """Of a sweep that starts nothing by itself."""
    return Recipe(
        settings=settings,
        metric=Metric.loss,
        rungs=rungs_of(settings, base.train.steps),
        base=base,
        min_cpus=1,
        listed=[],
        corners=[],
        compose=lambda _: base,
        config=lambda _: base,
        command=lambda _: [],
        suggest=lambda *_: None,
        breed=lambda _: [],
    )


def added(name: str, **parameters: str) -> dict[str, Any]:
    return {"event": Record.trial_added, "trial": name, "parameters": parameters}


def started(name: str) -> dict[str, Any]:
    return {"event": Record.trial_started, "trial": name, "pid": 1, "born_s": 1.0, "host": "here"}


def judged(name: str, step: int, value: float | None, *, goes_on: bool) -> dict[str, Any]:
    return {"event": Record.rung, "trial": name, "step": step, "value": value, "goes_on": goes_on}


def ended(name: str, state: str, value: float | None = None, step: int = 20, **more: Any) -> dict[str, Any]:
    fields = {"is_failure": state == "failed", "reason": None, **more}
    return {"event": Record.trial_ended, "trial": name, "state": state, "value": value, "step": step, **fields}


def finished_study(values: dict[str, tuple[dict[str, str], float | None]]) -> Study:
    """Name -> (parameters, value), one after the other."""
    records = []
    for name, (parameters, value) in values.items():
        records += [added(name, **parameters), started(name), ended(name, "finished", value)]
    return read_study(records)
