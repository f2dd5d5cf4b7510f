"""Opening a run: the folder, the lock, what an earlier start recorded, the plan, the files written before anything
starts. Starting a run whose folder exists resumes it."""

import contextlib
import json
import os
import platform
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator import holding
from orchestrator.checkpoint.commit import check_newest_is_ours, step_standings
from orchestrator.checkpoint.store import Store
from orchestrator.codec import decode, encode
from orchestrator.config import RunConfig
from orchestrator.control.gitstate import git_state
from orchestrator.data.files import local_path
from orchestrator.data.manifest import Manifest
from orchestrator.data.shards import check_shards, read_manifest, verify_at_start
from orchestrator.doctor.proberecord import recorded_probe
from orchestrator.errors import ConfigError, StoreError, StoreFault
from orchestrator.fleet.surroundings import in_ray_job
from orchestrator.observe.ledger import read_events
from orchestrator.plan import plan_run, recorded, run_id_of
from orchestrator.runfolder import RunFolder
from orchestrator.spec import RunPlan

PACKAGES = ("phalanx", "torch", "deepspeed", "ray", "hydra-core", "omegaconf", "wandb", "tokenizers", "numpy")
BYTES_PER_PARAMETER = 12
"""A checkpoint's fp32 master and two moments."""


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run whose folder is ours."""

    config: RunConfig
    plan: RunPlan
    manifest: Manifest
    folder: RunFolder
    checkpoint_url: str
    is_resumed: bool


def read_data(config: RunConfig) -> Manifest:
    """The manifest, its shards checked; before a run's first start read, too, where they are small.

    Raises DataError or ConfigError.
    """
    if config.data.path is None:
        raise ConfigError(
            "data.path is not set; name a folder of prepared data, or make one: "
            "phalanx prepare data.source=... data.path=..."
        )
    manifest = read_manifest(config.data.path)
    check_shards(config.data.path, manifest)
    if not find_folder(config, manifest).plan.exists():
        verify_at_start(config.data.path, manifest)
    return manifest


def check_places(config: RunConfig) -> None:
    """Raises ConfigError where a Ray job would write into its working folder, which Ray deletes."""
    if not in_ray_job():
        return
    places = {"run.root": config.run.root, "checkpoint.url": config.checkpoint.url}
    problems = [
        f"{key}={place} is relative, and a Ray job runs in a folder of its node that Ray deletes; use a path that "
        f"all nodes see, as in {key}=/shared/runs"
        for key, place in places.items()
        if place is not None and "://" not in place and not Path(place).is_absolute()
    ]
    if problems:
        raise ConfigError(*problems)


def find_folder(config: RunConfig, manifest: Manifest) -> RunFolder:
    return RunFolder(Path(config.run.root) / run_id_of(config, manifest))


def checkpoint_url(config: RunConfig, folder: RunFolder) -> str:
    return config.checkpoint.url or str(folder.checkpoints.resolve())


def recorded_plan(folder: RunFolder) -> RunPlan | None:
    """The plan of the last start, None where the run never started. Raises ConfigError where it can't be read."""
    try:
        return decode(RunPlan, json.loads(folder.plan.read_text()))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise ConfigError(
            f"{folder.path} can't be a run's folder: a file is in its way; set run.root or run.id to another place"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{folder.plan} can't be read ({error!r}); restore it, or start another run with run.id=..."
        ) from error


def plan_for(config: RunConfig, manifest: Manifest, folder: RunFolder, device: str) -> RunPlan:
    """The plan, held to what the folder's first start fixed. Raises ConfigError with every problem."""
    before = recorded_plan(folder)
    resumed = None if before is None else recorded(before)
    return plan_run(config, manifest, device=device, resumed=resumed, probe=recorded_probe())


def is_finished(folder: RunFolder, plan: RunPlan) -> bool:
    """Whether the run has already done all the steps that are asked for."""
    return any(
        event["event"] == "run_finished" and (event["step"] or 0) >= plan.steps
        for event in read_events(folder.events)
    )


def check_store(config: RunConfig, plan: RunPlan, folder: RunFolder) -> None:
    """What can be known of the checkpoints before anything starts. Raises ConfigError where their place can't be
    one, one does not fit on the disk or all of them have vanished, CheckpointMismatchError where those that are there
    are another run's, StoreError where the store may answer later."""
    url = checkpoint_url(config, folder)
    try:
        store = Store(url)
        check_newest_is_ours(store, plan.fingerprint, plan.identity)
        _check_not_vanished(store, folder)
    except StoreError as error:
        if error.fault is StoreFault.busy:
            raise
        raise ConfigError(f"checkpoint.url can't be used: {error}") from error
    _check_space(url, plan)


def _check_not_vanished(store: Store, folder: RunFolder) -> None:
    """An empty store behind a run that has committed is a mount that is missing, or another URL: not a new run."""
    committed = [event["step"] for event in read_events(folder.events) if event["event"] == "checkpoint_committed"]
    if committed and not step_standings(store):
        raise ConfigError(
            f"checkpoint.url={store.where('')} holds no checkpoint, but run {folder.run_id} has committed steps up "
            f"to {max(committed)}; mount it, or name where they are, or start another run with run.id=..."
        )


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Hold the run's lock, which the kernel frees however this process ends. Raises ConfigError if it is held.

    A folder in which nothing was started is taken away again.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with holding.held(folder.lock):
            try:
                yield
            finally:
                if not folder.plan.exists():
                    with contextlib.suppress(OSError):
                        folder.lock.unlink()
                        folder.path.rmdir()
    except holding.HeldError as holder:
        raise ConfigError(
            f"run {folder.run_id} is already running ({holder}); watch it with: phalanx status {folder.quoted}"
        ) from None


def open_run(
    config: RunConfig,
    manifest: Manifest,
    plan: RunPlan,
    overrides: list[str],
    config_yaml: str,
    *,
    recipe_yaml: str = "",
) -> OpenRun:
    """Write the files that say what the run is; call with the lock held. `recipe_yaml`: without what was typed."""
    folder = RunFolder(Path(config.run.root) / plan.run_id)
    is_resumed = folder.plan.exists()
    _write(folder.config, config_yaml)
    if recipe_yaml:
        _write(folder.recipe, recipe_yaml)
    _write(folder.overrides, "".join(f"- {json.dumps(word)}\n" for word in overrides) or "[]\n")
    _write(folder.ds_config, json.dumps(plan.ds_config, indent=2) + "\n")
    _write(folder.env, json.dumps(environment_facts(), indent=2) + "\n")
    _write(folder.plan, json.dumps(encode(plan), indent=2) + "\n")  # last: from here on the run exists
    return OpenRun(config, plan, manifest, folder, checkpoint_url(config, folder), is_resumed)


def agents_name(folder: RunFolder) -> str:
    """By which Ray knows this run's agents, the same for every driver of it; call with the lock held.

    The run's id alone is not enough: other folders may hold a run of that name.
    """
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        return str(json.loads(folder.agents.read_text())["name"])
    name = f"{folder.run_id}-{secrets.token_hex(8)}"
    _write(folder.agents, json.dumps({"name": name}) + "\n")
    return name


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _check_space(url: str, plan: RunPlan) -> None:
    """One checkpoint must fit beside what is there: better refused now than lost at the first save."""
    path = local_path(url)
    if path is None:
        return
    needed_bytes = plan.parameters * BYTES_PER_PARAMETER
    parent = next(p for p in (path, *path.parents) if p.exists())
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < needed_bytes:
        raise ConfigError(
            f"checkpoint.url={url} has {free_bytes / 2**20:,.0f} MiB free, one checkpoint of "
            f"{plan.parameters:,} parameters takes {needed_bytes / 2**20:,.0f} MiB; free some space or set "
            "checkpoint.url to another disk"
        )


def environment_facts() -> dict[str, Any]:
    """Versions and the machine; no environment variables, which may hold secrets."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "folder": str(Path.cwd()),
        "git": git_state(Path.cwd()),
        "versions": versions(),
    }


@cache
def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
