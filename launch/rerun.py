"""`phalanx rerun`: what a run was, again from its start, as a new run."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

from launch import submit
from launch.cli_help import parser
from launch.compose import compose, from_yaml, recipe_yaml, resolved_yaml
from launch.runs import find_run
from orchestrator.codec import encode
from orchestrator.config import RunConfig, Scheduler
from orchestrator.control.driver import drive
from orchestrator.control.session import Typed
from orchestrator.errors import ConfigError
from orchestrator.report.record import differences, flattened
from orchestrator.runfolder import RunFolder

EXAMPLES = """  phalanx rerun first                       the same config and data, as run first-2
  phalanx rerun runs/first run.seed=7       with something changed
  phalanx rerun first --print               only print the command

The recorded config counts: values of a recipe that has changed since are taken as they were. The new run has a folder
of its own; where it stops early, the command that it prints goes on with it. A submitted run is submitted again."""
OWN = frozenset({"run.id", "checkpoint.url"})
"""What no two runs share."""
PLACE = frozenset({"run.root"})


def run(argv: list[str]) -> int:
    """Start the new run; returns its exit code. Raises ConfigError, and starts nothing, where that can't be done."""
    usage = "[--root DIR] [--print] RUN [KEY=VALUE ...]"
    reader = parser("rerun", "Run a run again from its start, as a new run.", EXAMPLES, usage)
    reader.add_argument("run", metavar="RUN", help="a run's id or folder")
    reader.add_argument("--root", type=Path, default=Path("runs"), help="where the runs are (default: runs)")
    reader.add_argument("--print", action="store_true", dest="only_print", help="print the command, start nothing")
    options, changes = reader.parse_known_args(argv)
    folder = find_run(options.run, options.root)
    config, words = again(folder, changes)
    is_job = folder.jobs.exists() or config.cluster.scheduler is Scheduler.kuberay
    command = f"phalanx {'submit' if is_job else 'train'} {shlex.join(words)}"
    if options.only_print:
        print(command)
        return 0
    if is_job:
        return submit.run(words)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return drive(
        config,
        Typed(
            overrides=words,
            config_yaml=resolved_yaml(config),
            command=command,
            recipe_yaml=_recipe(folder, words),
        ),
    )


def again(folder: RunFolder, changes: list[str]) -> tuple[RunConfig, list[str]]:
    """The new run's config and the overrides that stand for it. Raises ConfigError with every problem."""
    recorded = from_yaml(_text(folder.config))
    typed = [word for word in yaml.safe_load(_text(folder.overrides)) or [] if _key(word) not in OWN]
    given = {_key(word) for word in changes}
    problems = _problems(folder, recorded, given)
    if problems:
        raise ConfigError(*problems)
    own = [] if "run.id" in given else [f"run.id={free_id(folder)}"]
    words = [*typed, *changes, *own]
    now = compose([*typed, *own]).config
    drift = _drift(recorded, now)
    if not changes:
        recorded.run.id = own[0].removeprefix("run.id=")
        return recorded, [*words, *(f"{key}={json.dumps(before)}" for key, _, before in drift)]
    if any(key not in given for key, _, _ in drift):
        raise ConfigError(*(_drift_words(folder, *changed) for changed in drift if changed[0] not in given))
    return compose(words).config, words


def free_id(folder: RunFolder) -> str:
    """`first` -> `first-2`, or the next number that is free beside it."""
    number = 2
    while (folder.path.parent / f"{folder.run_id}-{number}").exists():
        number += 1
    return f"{folder.run_id}-{number}"


def _problems(folder: RunFolder, recorded: RunConfig, given: set[str]) -> list[str]:
    found = []
    if recorded.checkpoint.url is not None and "checkpoint.url" not in given:
        found.append(
            f"checkpoint.url={recorded.checkpoint.url} is run {folder.run_id}'s own; "
            "give the new run another: checkpoint.url=..."
        )
    path, was_in = recorded.data.path, _started_in(folder)
    is_elsewhere = path is not None and "://" not in path and not Path(path).exists() and "data.path" not in given
    if is_elsewhere and was_in is not None and was_in != Path.cwd():
        found.append(
            f"data.path={path} is not here: run {folder.run_id} was started in {was_in}; "
            "go there, or add data.path=..."
        )
    return found


def _drift(recorded: RunConfig, now: RunConfig) -> list[tuple[str, Any, Any]]:
    return [
        changed
        for changed in differences(flattened(encode(recorded)), flattened(encode(now)))
        if changed[0] not in OWN | PLACE
    ]


def _drift_words(folder: RunFolder, key: str, now: Any, before: Any) -> str:
    return (
        f"{key} was {json.dumps(before)} in run {folder.run_id}, its recipe says {json.dumps(now)} by now; "
        f"say which: {key}=..."
    )


def _recipe(folder: RunFolder, words: list[str]) -> str:
    return folder.recipe.read_text() if folder.recipe.is_file() else recipe_yaml(compose(words))


def _started_in(folder: RunFolder) -> Path | None:
    try:
        return Path(json.loads(folder.env.read_text())["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError(
            f"{path} can't be read ({error.strerror}); without it nobody knows what the run was"
        ) from error


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
