"""sweep.json: what a sweep is, so that a later start can be held to it. Plan half."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from orchestrator.codec import encode
from orchestrator.config import RunConfig
from orchestrator.data.manifest import Manifest
from orchestrator.fingerprint import identity
from orchestrator.plan import resolve_model
from orchestrator.sweep.settings import Algorithm, Metric, Pruner, SweepConfig
from orchestrator.sweep.space import Space, dimension_text

COMPARABLE = ("train.steps", "train.precision", "train.eval_every_steps", "train.eval_rows")
"""Beyond a run's identity: what trials must share for their metrics to be compared."""
RUNGS = ("reduction_factor", "min_steps")
"""Where a pruner judges: a trial is compared with those that were judged there before."""


def default_id(base: RunConfig, algorithm: Algorithm, space: Space) -> str:
    """`quickstart-sweep-1f0c9a3e`: from the keys that are swept, not from their values, which may be added to."""
    keys = json.dumps([algorithm, sorted(dimension.key for dimension in space)])
    return f"{base.run.name or base.model.name}-sweep-{hashlib.sha256(keys.encode()).hexdigest()[:8]}"


def base_recipe(base: RunConfig, manifest: Manifest | None, space: Space) -> dict[str, Any]:
    """Dotted key -> value of all that every trial shares and its result depends on."""
    found = identity(base, resolve_model(base, manifest), manifest)
    found |= {key: _value(base, key) for key in COMPARABLE}
    swept = [dimension.key for dimension in space]
    if "experiment" in swept:
        return {}
    return {key: value for key, value in found.items() if not any(_covers(name, key) for name in swept)}


def describe(
    settings: SweepConfig, algorithm: Algorithm, metric: Metric, space: Space, base: Mapping[str, Any]
) -> dict[str, Any]:
    """What sweep.json holds, as plain JSON."""
    is_pbt = algorithm is Algorithm.pbt
    return {
        "algorithm": str(algorithm),
        "metric": str(metric),
        "window_steps": settings.window_steps,
        "pruner": str(settings.pruner),
        **({name: getattr(settings, name) for name in RUNGS} if settings.pruner is not Pruner.none else {}),
        "trials": settings.trials,
        **({"population": settings.population, "interval_steps": settings.interval_steps} if is_pbt else {}),
        "space": {dimension.key: dimension_text(dimension) for dimension in space},
        "base": dict(base),
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any], sweep_id: str) -> list[str]:
    """One sentence with both values for each difference that makes new trials incomparable with those there are."""
    way_out = "start another sweep (sweep.id=...), set it back, or say --accept-changes"
    found = []
    for key in ("metric", "window_steps", "pruner", *RUNGS, "population", "interval_steps"):
        if old.get(key) != new.get(key):
            found.append(
                f"sweep.{key} was {old.get(key)} when sweep {sweep_id} started, now {new.get(key)}; {way_out}"
            )
    before, now = ", ".join(sorted(old["space"])), ", ".join(sorted(new["space"]))
    if before != now:
        found.append(f"sweep {sweep_id} searched {before}, now {now}; {way_out}")
        return found
    for key in sorted({*old["base"], *new["base"]}):
        was, is_ = old["base"].get(key), new["base"].get(key)
        if was != is_:
            found.append(f"{key} was {was} when sweep {sweep_id} started, now {is_}; {way_out}")
    return found


def _value(config: RunConfig, key: str) -> Any:
    group, _, name = key.partition(".")
    return encode(getattr(getattr(config, group), name))


def _covers(swept: str, key: str) -> bool:
    return key == swept or key.startswith(f"{swept}.")
