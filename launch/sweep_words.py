"""The words of a sweep -> settings, search space and what every trial has in common. Knows nothing of Hydra."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from launch.compose import CONF, GROUPS, Composer, choices, parse_value, split_config_dirs, sweep_dimension
from launch.keys import key_types, split_optional, value_problem
from launch.overrides import MalformedError
from launch.suggest import near_miss, not_known
from orchestrator.codec import decode
from orchestrator.config import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.sweep.settings import Algorithm, SweepConfig, setting_problems
from orchestrator.sweep.space import (
    Dimension,
    Interval,
    Parameters,
    Space,
    ends,
    grid,
    grid_size,
    is_listed,
    parameter_words,
    space_problems,
)
from orchestrator.validate import batch_problems

GROUP = "sweep"
MAX_GRID = 10_000
OURS = {"run.id": "the trials' ids follow from their parameters; sweep.id=NAME names the sweep"}
"""Keys that a sweep sets for its trials."""


@dataclass(frozen=True, slots=True)
class SweepWords:
    settings: SweepConfig
    algorithm: Algorithm
    space: Space
    base_words: tuple[str, ...]
    """Overrides of every trial, config folders included."""

    def compose(self, parameters: Parameters, more: Sequence[str] = ()) -> RunConfig:
        """One trial's config, with `more` words. Raises ConfigError where they make none."""
        return _composed((*self.base_words, *parameter_words(parameters), *more))

    def trials(self) -> list[Parameters]:
        """All trials of a grid, else those that judge the space: its ends."""
        return grid(self.space) if self.algorithm is Algorithm.grid else ends(self.space)


_COMPOSER = Composer()


@cache
def _composed(words: tuple[str, ...]) -> RunConfig:
    """Kept: each trial's config is asked for several times."""
    config = _COMPOSER.compose(words).config
    if problems := batch_problems(config):
        raise ConfigError(*problems)
    return config


def read_words(
    words: Sequence[str], watch: Callable[[Sequence[Parameters]], Iterable[Parameters]] = iter
) -> SweepWords:
    """Raises ConfigError with every problem of the settings, the space and the trials that can't be composed.

    `watch`: what the trials go through one by one, to be counted.
    """
    rest, folders, found = split_config_dirs(words)
    settings, rest, more = _settings(rest, folders)
    found += more
    file_words = [f"{key}={_in_grammar(value)}" for key, value in settings.space.items()]
    space, base_words = _space([*file_words, *rest], folders)
    found += [f"{key} can't be set in a sweep: {why}" for key, why in OURS.items() if _names(key, space, base_words)]
    found += setting_problems(settings) + space_problems(space) + _integer_problems(space)
    dir_words = [f"--config-dir={folder}" for folder in folders]
    if not space:
        found.append("the sweep has nothing to search; give several values, as in optim.lr=1e-3,3e-3")
        found += _base_problems((*dir_words, *base_words))
    algorithm = settings.algorithm or (Algorithm.grid if is_listed(space) else Algorithm.tpe)
    if algorithm is Algorithm.grid:
        found += _grid_problems(space)
    if algorithm is Algorithm.pbt:
        found += _population_problems(space)
    if found:
        raise ConfigError(*dict.fromkeys(found))
    read = SweepWords(settings, algorithm, space, (*dir_words, *base_words))
    _check_trials(read, watch)
    return read


def _base_problems(words: tuple[str, ...]) -> list[str]:
    """Of a sweep without values to search: one that was mistyped is among them."""
    try:
        _composed(words)
    except ConfigError as error:
        return list(error.problems)
    return []


def _settings(words: Sequence[str], folders: Sequence[Path]) -> tuple[SweepConfig, list[str], list[str]]:
    """Settings, the words that are not about them, and problems."""
    names = choices(GROUP, folders)
    raw: dict[str, Any] = {}
    rest: list[str] = []
    found: list[str] = []
    for word in words:
        key, _, text = word.partition("=")
        if key == GROUP and text in names:
            raw |= _file(text, folders)
        elif key == GROUP:
            found.append(not_known(f"{GROUP}={text}", text, names))
        elif key.startswith(f"{GROUP}."):
            try:
                raw[key.removeprefix(f"{GROUP}.")] = parse_value(word)
            except MalformedError as error:
                found.append(f"{word} can't be read ({error})")
        else:
            rest.append(word)
    hints = get_type_hints(SweepConfig)
    for name in [name for name in raw if name not in hints]:
        near = near_miss(name, hints)
        known = (
            f"did you mean {GROUP}.{near}?" if near else f"known: {', '.join(f.name for f in fields(SweepConfig))}"
        )
        found.append(f"{GROUP}.{name} is not a key; {known}")
    typed = {name: value for name, value in raw.items() if name in hints}
    problems = [value_problem(f"{GROUP}.{name}", str(value), value, hints[name]) for name, value in typed.items()]
    found += [problem for problem in problems if problem]
    return SweepConfig() if found else decode(SweepConfig, typed), rest, found


def _in_grammar(value: Any) -> str:
    """A YAML list is a choice of its items."""
    return f"choice({','.join(map(str, value))})" if isinstance(value, list) else str(value)


def _file(name: str, folders: Sequence[Path]) -> dict[str, Any]:
    places = [folder / GROUP / f"{name}.yaml" for folder in (*folders, CONF)]
    raw = yaml.safe_load(next(place for place in places if place.is_file()).read_text())
    return raw if isinstance(raw, dict) else {}


def _space(words: Sequence[str], folders: Sequence[Path]) -> tuple[Space, list[str]]:
    """The dimensions, the last word of each key counting, and the words that name one value."""
    space: dict[str, Dimension] = {}
    base: list[str] = []
    for word in words:
        key = word.partition("=")[0]
        dimension = sweep_dimension(word, choices(key, folders) if key in GROUPS else ())
        space.pop(key, None)
        if dimension is None:
            base.append(word)
        else:
            space[key] = dimension
            base = [other for other in base if other.partition("=")[0] != key]
    return tuple(space.values()), base


def _names(key: str, space: Space, base_words: Sequence[str]) -> bool:
    return any(dimension.key == key for dimension in space) or any(w.startswith(f"{key}=") for w in base_words)


def _integer_problems(space: Space) -> list[str]:
    """Hydra's intervals are of real numbers unless int(...) is around them."""
    return [
        f"{d.key}=interval({d.low:g},{d.high:g}) gives fractions, and {d.key} takes integers; "
        f"use '{d.key}=int(interval({d.low:g},{d.high:g}))'"
        for d in space
        if isinstance(d, Interval) and not d.is_integer and split_optional(key_types().get(d.key))[0] is int
    ]


def _grid_problems(space: Space) -> list[str]:
    if not is_listed(space):
        endless = ", ".join(d.key for d in space if not hasattr(d, "values"))
        return [f"sweep.algorithm=grid can't list {endless}, an interval; use choice(...) or sweep.algorithm=tpe"]
    if grid_size(space) > MAX_GRID:
        size = f"{grid_size(space):,} trials, more than {MAX_GRID:,}"
        return [f"the grid has {size}; list fewer values, or use sweep.algorithm=random sweep.trials=..."]
    return []


FIXED_GROUPS = {"model", "data", "experiment", "cluster", "parallel", "checkpoint"}
FIXED_KEYS = {"train.steps", "train.seq_len", "optim.name", "optim", "train"}


def _population_problems(space: Space) -> list[str]:
    """What can't change while a checkpoint is handed on."""
    return [
        f"{d.key} can't be searched by sweep.algorithm=pbt: members hand their checkpoints on; search fields of "
        "optim, as in optim.lr, or use sweep.algorithm=tpe"
        for d in space
        if d.key in FIXED_KEYS or d.key.partition(".")[0] in FIXED_GROUPS
    ]


def _check_trials(read: SweepWords, watch: Callable[[Sequence[Parameters]], Iterable[Parameters]]) -> None:
    """Compose every trial that can be named in advance: a bad value is refused before anything starts."""
    found: dict[str, str] = {}
    for parameters in watch(read.trials()):
        try:
            read.compose(parameters)
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(problem, " ".join(parameter_words(parameters)))
    if found:
        raise ConfigError(*(f"{problem} (in the trial {words})" for problem, words in found.items()))
