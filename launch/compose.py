"""conf/*.yaml and overrides -> RunConfig. The only file that imports Hydra; OmegaConf ends here.

Every problem is reported at once: each override is judged on its own, what is sound is composed, and the
composed config's ranges and combinations are added. Hydra's own exceptions are translated here alone.
"""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import yaml  # PyYAML comes with OmegaConf
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Sweep
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.keys import fields_problem, key_types
from launch.overrides import MalformedError, ManyValuesError, Override, judge
from launch.suggest import near_key
from orchestrator.codec import decode, encode
from orchestrator.config import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.sweep.space import Choices, Dimension, Interval
from orchestrator.validate import batch_problems, problems

CONF = Path(__file__).resolve().parent.parent / "conf"
GROUPS = ("model", "data", "optim", "train", "parallel", "cluster", "tracking", "experiment")
CONFIG_DIR_OPTIONS = ("--config-dir", "-cd")


@dataclass(frozen=True, slots=True)
class Composed:
    config: RunConfig
    overrides: list[str]
    """What was typed, config folders included (absolute): composing it gives the same config again."""


def compose(overrides: Sequence[str]) -> Composed:
    """Compose a run from override words; `--config-dir DIR` among them adds a folder of one's own choices.

    Raises ConfigError with every problem: keys, choices, types, ranges and combinations.
    """
    return _judge_and_compose(overrides, _compose)


class Composer:
    """Composes many runs as `compose` does, in a tenth of its time: the choices of groups, which take most of it, are
    composed once, and fields are set in a copy. So files that change in between are not read again."""

    def __init__(self) -> None:
        self._chosen: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> Composed:
        """Raises ConfigError with every problem."""
        return _judge_and_compose(overrides, self._compose)

    def _compose(self, judged: list[Override], config_dirs: list[Path]) -> RunConfig:
        last = _last_of_each(judged)
        if any(override.hydra.startswith("~") for override in last):
            return _compose(judged, config_dirs)
        choices = (*(each.hydra for each in last if each.key in GROUPS), *_search_path(config_dirs))
        try:
            if choices not in self._chosen:
                self._chosen[choices] = _by_hydra(choices)
            config = copy.deepcopy(self._chosen[choices])
            for override in OverridesParser.create().parse_overrides([e.hydra for e in last if e.key not in GROUPS]):
                key, value = override.key_or_group, override.value()
                OmegaConf.update(config, key, value, merge=True, force_add=override.is_force_add())
            return _to_config(config)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError):
            return _compose(judged, config_dirs)  # says what is wrong


def _judge_and_compose(
    overrides: Sequence[str], composed: Callable[[list[Override], list[Path]], RunConfig]
) -> Composed:
    words, config_dirs, found = split_config_dirs(overrides)
    known = {group: choices(group, config_dirs) for group in GROUPS}
    judged = [judge(word, known, parse_value) for word in words]
    found += [override.problem for override in judged if override.problem]
    config: RunConfig | None = None
    try:
        config = composed([override for override in judged if not override.problem], config_dirs)
        found += _range_problems(config, judged, has_errors=bool(found))
    except ConfigError as error:
        found += error.problems
    if found or config is None:
        raise ConfigError(*dict.fromkeys(found))
    dir_words = [f"--config-dir={folder}" for folder in config_dirs]
    return Composed(config=config, overrides=[*dir_words, *words])


def choices(group: str, config_dirs: Sequence[Path] = ()) -> list[str]:
    """Names of a group's choices, sorted: `choices("parallel")` begins with zero0."""
    files = [file for folder in (CONF, *config_dirs) for file in (folder / group).glob("*.yaml")]
    return sorted(file.stem for file in files)


def choice_file(group: str, name: str) -> Path:
    """The YAML file of one of our own choices."""
    return CONF / group / f"{name}.yaml"


def resolved_yaml(config: RunConfig) -> str:
    """The whole config as YAML, nothing left to resolve: what the run folder's config.yaml holds."""
    return str(yaml.safe_dump(encode(config), sort_keys=False, allow_unicode=True, width=110))


def recipe_yaml(composed: Composed) -> str:
    """What the overrides started from: the experiment, else the choices of groups; empty where that needs more."""
    words, config_dirs, _ = split_config_dirs(composed.overrides)
    chosen = [word for word in words if word.partition("=")[0] in GROUPS]
    recipe = [word for word in chosen if word.startswith("experiment=")] or chosen
    try:
        return resolved_yaml(compose([*(f"--config-dir={folder}" for folder in config_dirs), *recipe]).config)
    except ConfigError:  # a choice that needs a word beside it
        return ""


def from_yaml(text: str) -> RunConfig:
    """The inverse of `resolved_yaml`; `${...}` in it is plain text. Raises ConfigError if it doesn't fit."""
    try:
        raw = yaml.safe_load(text)
        if problem := fields_problem("", text.strip()[:40], raw):
            raise ConfigError(problem)
        return decode(RunConfig, raw)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"the text is not a config that this version wrote ({first})") from error


def sweep_dimension(word: str, names: Sequence[str] = ()) -> Dimension | None:
    """The dimension that an override names in Hydra's grammar; None where it names one value, or can't be read.

    `names`: what a glob() of this key chooses from. `shuffle` mixes the values, the same way each time.
    """
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return None
    sweep = override.value() if override.is_sweep_override() else None
    key = override.key_or_group
    match sweep:
        case IntervalSweep():
            low, high = float(cast(float, sweep.start)), float(cast(float, sweep.end))
            is_integer = isinstance(sweep.start, int) and isinstance(sweep.end, int)
            return Interval(key, low, high, is_log="log" in sweep.tags, is_integer=is_integer)
        case Glob():
            return Choices(key, tuple(sweep.filter(list(names))))
        case Sweep():
            is_mixed, sweep.shuffle = getattr(sweep, "shuffle", False), False
            values = list(dict.fromkeys(_sweep_texts(override, sweep)))
            if is_mixed:
                Random(word).shuffle(values)
            return Choices(key, tuple(values))
    return None


def _sweep_texts(override: HydraOverride, sweep: Sweep) -> list[str]:
    """The values as a person would type each of them: texts as they stand, the rest in Hydra's grammar."""
    texts = list(map(str, override.sweep_string_iterator()))
    if not isinstance(sweep, ChoiceSweep):
        return texts
    values = [getattr(value, "text", value) for value in sweep.list]
    return [value if isinstance(value, str) else text for value, text in zip(values, texts, strict=True)]


def split_config_dirs(words: Sequence[str]) -> tuple[list[str], list[Path], list[str]]:
    """The overrides, the folders that `--config-dir` names and what is wrong with them."""
    rest: list[str] = []
    folders: list[Path] = []
    found: list[str] = []
    waiting = iter(words)
    for word in waiting:
        option, equals, value = word.partition("=")
        if option not in CONFIG_DIR_OPTIONS:
            rest.append(word)
            continue
        given = value if equals else next(waiting, "")
        if given and Path(given).is_dir():
            folders.append(Path(given).resolve())
        else:
            found.append(f"{option}={given} is not a folder; give one that holds experiment/NAME.yaml")
    found += [
        f"{folder}/{group}/{name}.yaml has the name of phalanx's own {group}={name}; rename the file"
        for folder in folders
        for group in GROUPS
        for name in sorted({file.stem for file in (folder / group).glob("*.yaml")} & {*choices(group)})
    ]
    return rest, folders, found


def parse_value(word: str) -> Any:
    """The one value of `KEY=VALUE` in Hydra's grammar. Raises MalformedError or ManyValuesError."""
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise MalformedError(str(error).splitlines()[0]) from error
    if override.is_sweep_override():
        raise ManyValuesError
    return override.value()


def _compose(judged: list[Override], config_dirs: list[Path]) -> RunConfig:
    words = [override.hydra for override in _last_of_each(judged)]
    try:
        return _to_config(_by_hydra([*words, *_search_path(config_dirs)]))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(_sentence(error)) from error


def _last_of_each(judged: list[Override]) -> list[Override]:
    """Of two overrides of one key the last counts, for groups too (Hydra would refuse those)."""
    last = {override.key: place for place, override in enumerate(judged)}
    return [override for place, override in enumerate(judged) if last[override.key] == place]


def _search_path(config_dirs: list[Path]) -> list[str]:
    paths = ",".join(f"'file://{folder}'" for folder in config_dirs)
    return [f"hydra.searchpath=[{paths}]"] if config_dirs else []


def _by_hydra(words: Sequence[str]) -> DictConfig:
    ConfigStore.instance().store(name="schema", node=RunConfig)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return hydra_compose("config", list(words))


def _to_config(composed: DictConfig) -> RunConfig:
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        way_out = "give it in a YAML file or as an override"
        raise ConfigError(*(f"{key} has no value; {way_out}" for key in missing))
    return cast(RunConfig, OmegaConf.to_object(composed))


def _range_problems(config: RunConfig, judged: list[Override], *, has_errors: bool) -> list[str]:
    """Problems of the composed values, without those that a refused override's stand-in may have caused."""
    refused = {override.key for override in judged if override.problem}
    typed = {override.key for override in judged} - refused
    found = problems(config)
    # By itself an uneven batch is refused by plan and train only, which know whether the run was resized.
    if (found or has_errors) and not any(key.startswith(("train", "cluster")) for key in refused):
        found += batch_problems(config)
    return [problem for problem in found if not _follows_from(problem, refused, typed)]


def _follows_from(problem: str, refused: set[str], typed: set[str]) -> bool:
    named = {key for key in re.findall(r"[a-z_]+(?:\.[a-z_]+)+", problem) if key in key_types()}
    if "experiment" in refused and not named <= typed:
        return True
    return any(key == name or name.startswith(key + ".") for key in refused for name in named)


def _sentence(error: BaseException) -> str:
    """One sentence from Hydra's or OmegaConf's exception: file, key and near miss where they can be found."""
    text = str(error)
    file = re.search(r"In '([^']+)'", text)
    full_key = re.search(r"full_key: (\S+)", text)
    where = f"{file[1]}.yaml: " if file else ""
    lines = [line.strip().rstrip(".") for line in text.splitlines() if line.strip()]
    first = next((line for line in lines if not line.startswith("In '")), type(error).__name__)
    if full_key and re.match(r"Key '.*' not in", first):
        near = near_key(full_key[1], list(key_types()))
        hint = f"did you mean {near}?" if near else "phalanx schema prints every key"
        return f"{where}{full_key[1]} is not a key; {hint}"
    at = f"{full_key[1]}: " if full_key else ""
    return f"{where}{at}{first}; correct it there, phalanx schema prints every key and its type"
