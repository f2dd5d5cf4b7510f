"""Finds a run by its id or its folder, and the store its checkpoints lie in."""

from pathlib import Path
from typing import Any

import yaml

from launch.suggest import not_known
from orchestrator.checkpoint.store import Store
from orchestrator.errors import ConfigError
from orchestrator.runfolder import RunFolder

DEFAULT_ROOT = "runs"


def find_run(name: str, root: str | Path = DEFAULT_ROOT) -> RunFolder:
    """The run with the id `name` under `root`, or whose folder `name` is. Raises ConfigError."""
    for path in (Path(root, name), Path(name)):
        if is_run(path):
            return RunFolder(path)
    known = known_runs(root)
    if not known:
        raise ConfigError(
            f"run {name} was not found: {Path(root)}/ holds no runs and {name} is not a run's folder; "
            "name another --root or a run's folder"
        )
    raise ConfigError(not_known(f"run {name} in {Path(root)}/", name, known))


def known_runs(root: str | Path = DEFAULT_ROOT) -> list[str]:
    """Ids of the runs under `root`, the newest first."""
    folder = Path(root)
    found = [path for path in folder.iterdir() if is_run(path)] if folder.is_dir() else []
    return [path.name for path in sorted(found, key=lambda path: -path.stat().st_mtime)]


def is_run(path: Path) -> bool:
    """Whether a folder is a run's: it holds what is written before anything starts, or is a job in a queue."""
    folder = RunFolder(path)
    try:
        files = folder.config, folder.plan, folder.job_script, folder.jobs
        return any(file.is_file() for file in files)
    except OSError:  # no folder can have that name, or nobody may look into it
        return False


def checkpoint_store(run: RunFolder) -> Store:
    """Where the run's checkpoints are: `checkpoint.url` of its config, else `checkpoints` in its folder."""
    return Store(checkpoint_settings(run).get("url") or run.checkpoints)


def checkpoint_settings(run: RunFolder) -> dict[str, Any]:
    """`checkpoint` of the run's config.yaml; empty where that was not written yet. Raises ConfigError."""
    try:
        raw = yaml.safe_load(run.config.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{run.config} can't be read ({problem}); restore it from plan.json") from error
    settings = raw.get("checkpoint") if isinstance(raw, dict) else None
    return settings if isinstance(settings, dict) else {}
