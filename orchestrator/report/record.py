"""All that a report is made of, read from a run's folder (writing.py) before anything is drawn. Plan half."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.data.manifest import Manifest
from orchestrator.observe.goodput import Goodput
from orchestrator.report.history import History
from orchestrator.spec import RunPlan

Flat = Mapping[str, Any]
"""Dotted key -> value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    run_id: str
    path: str
    """As a person would type it."""
    state: str
    """One of observe.state.RunState."""
    made_s: float
    """Of the report, unix seconds."""
    events: Sequence[Mapping[str, Any]]
    history: History
    goodput: Goodput
    plan: RunPlan | None
    """None where plan.json is not there or not readable."""
    config: Flat
    recipe: Flat | None
    """The config without what was typed; None where an older version started the run."""
    overrides: Sequence[str]
    verb: str
    """By which they were typed: train or submit."""
    environment: Mapping[str, Any]
    manifest: Manifest | None
    """Of the data; None where it can't be read from here."""

    @property
    def steps(self) -> int | None:
        return self.plan.steps if self.plan else None

    @property
    def step(self) -> int:
        """The newest step that was done."""
        return int(self.history.newest("step") or 0)


def flattened(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists and empty mappings are values."""
    if not isinstance(value, Mapping) or not value:
        return {key: value} if key else {}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= flattened(inner, f"{key}.{name}" if key else str(name))
    return flat


def differences(config: Flat, recipe: Flat) -> list[tuple[str, Any, Any]]:
    """(key, the recipe's value, the run's value) where they differ; None where one has none."""
    keys = [*config, *(key for key in recipe if key not in config)]
    return [(key, recipe.get(key), config.get(key)) for key in keys if recipe.get(key) != config.get(key)]
