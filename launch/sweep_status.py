"""How a sweep is, read from the files of its folder, for `phalanx status`."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.slurm import commands
from launch.slurm.finding import by_script, made_of
from launch.slurm.jobstate import JobState
from launch.slurm.standing import Ask, live_jobs
from orchestrator.codec import encode
from orchestrator.observe.aligned import aligned
from orchestrator.observe.jsonlines import read_records
from orchestrator.observe.metrics import StepRow, read_last_rows
from orchestrator.observe.state import is_held
from orchestrator.runfolder import RunFolder
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.settings import Metric, is_maximised
from orchestrator.sweep.space import parameter_words
from orchestrator.sweep.study import Study, Trial, TrialState, read_study
from orchestrator.sweep.wording import HEADER, counts_text, table_row, value_text


def find_sweep(name: str, root: Path) -> SweepFolder | None:
    """The sweep with the id `name` under `root`, or whose folder `name` is; None where there is none."""
    try:
        folders = (SweepFolder(path) for path in (root / name, Path(name)))
        return next((folder for folder in folders if folder.description.is_file()), None)
    except OSError:  # no folder can have that name, or nobody may look into it
        return None


def sweep_folders(root: Path) -> list[SweepFolder]:
    """The sweeps under `root`, by name."""
    return [SweepFolder(file.parent) for file in sorted(root.glob("*/sweep.json"))]


Jobs = Mapping[str, tuple[str, JobState]]
"""Path of a trial's run folder, or of the sweep's where all are one job -> the job that waits or runs."""


def sweep_jobs(folder: SweepFolder, ask: Ask) -> Jobs | None:
    """None for a sweep that was not submitted, or where SLURM can't be asked. Raises SlurmError."""
    whole = RunFolder(folder.path)
    is_array = folder.array.exists()
    if not (is_array or whole.job_script.exists()) or not commands.is_there():
        return None
    going = read_study(read_records(folder.study)).in_state(TrialState.running)
    live = live_jobs([whole, *(folder.trial(trial.id) for trial in going)], ask)
    return {**live_tasks(folder, ask), **live} if is_array else live


def live_tasks(folder: SweepFolder, ask: Ask) -> Jobs:
    """Of trials whose tasks wait or run, also where whoever submitted them was killed before writing them down."""
    trials = tasks_of(folder)
    tasks = made_of(folder.array_script, by_script(ask()))
    found = {trials.get(task.partition("_")[2]): (task, state) for task, state in tasks.items()}
    return {str(folder.trial(trial).path): job for trial, job in found.items() if trial is not None}


def tasks_of(folder: SweepFolder) -> dict[str, str]:
    """Task -> trial id, of every array so far."""
    try:
        return dict(json.loads(folder.array.read_text()).get("tasks", {}))
    except FileNotFoundError:
        return {}


def sweep_line(folder: SweepFolder, jobs: Jobs | None) -> str:
    """`sweep NAME  running  24 trials: 3 finished, ...`."""
    study = _seen(folder, jobs)
    return f"sweep {folder.sweep_id}  {_state(folder, study, jobs)}  {counts_text(study)}  {folder.path}"


def sweep_lines(folder: SweepFolder, jobs: Jobs | None) -> list[str]:
    """All trials, the best one, what to do next."""
    study, metric = _seen(folder, jobs), _metric(folder)
    rows = [
        table_row(trial, metric, _newest_row(folder, trial), _steps(folder, trial)) for trial in study.trials.values()
    ]
    best = study.best(maximise=is_maximised(metric))
    words = "none yet"
    if best is not None:
        words = (
            f"{best.id}: {metric} {value_text(best.value, metric)} with {' '.join(parameter_words(best.parameters))}"
        )
    state = _state(folder, study, jobs)
    job = (jobs or {}).get(str(folder.path))
    next_line = f"phalanx logs {folder.quoted}/trials/TRIAL"
    if folder.report.exists():
        next_line = shlex.join(["open", str(folder.report)])
    if state == "stopped":
        next_line = "the command that started it goes on"
    return [
        f"sweep       {folder.sweep_id}",
        f"state       {state}",
        *([f"SLURM       job {job[0]} {job[1]}"] if job is not None else []),
        f"trials      {counts_text(study)}",
        f"best        {words}",
        f"folder      {folder.path}",
        "",
        *aligned([HEADER, *rows]),
        "",
        f"next        {next_line}",
    ]


def sweep_json(folder: SweepFolder, jobs: Jobs | None) -> dict[str, Any]:
    study, metric = _seen(folder, jobs), _metric(folder)
    best = study.best(maximise=is_maximised(metric))
    return {
        "sweep": folder.sweep_id,
        "path": str(folder.path),
        "state": _state(folder, study, jobs),
        "metric": str(metric),
        "best": None if best is None else best.id,
        "trials": [encode(trial) for trial in study.trials.values()],
    }


def _seen(folder: SweepFolder, jobs: Jobs | None) -> Study:
    """The study, in which a trial runs only if somebody holds it: who would have written down its end may be gone."""
    study = read_study(read_records(folder.study))
    if is_held(folder.lock) or (jobs is None and folder.array.exists()):
        return study
    for trial in study.in_state(TrialState.running, TrialState.waiting, TrialState.interrupted):
        run = folder.trial(trial.id)
        job = (jobs or {}).get(str(run.path))
        if job is None and trial.state is not TrialState.running:
            continue
        state = TrialState.interrupted if job is None else TrialState.waiting
        study.trials[trial.id] = replace(trial, state=TrialState.running if is_held(run.lock) else state)
    return study


def _state(folder: SweepFolder, study: Study, jobs: Jobs | None) -> str:
    if is_held(folder.lock) or study.in_state(TrialState.running):
        return "running"
    if jobs:
        return "queued"
    return "stopped" if study.in_state(TrialState.waiting, TrialState.interrupted) else "ended"


def _metric(folder: SweepFolder) -> Metric:
    return Metric(json.loads(folder.description.read_text())["metric"])


def _newest_row(folder: SweepFolder, trial: Trial) -> StepRow | None:
    if trial.state is not TrialState.running:
        return None
    rows = read_last_rows(folder.trial(trial.id).metrics, 1)
    return rows[0] if rows else None


def _steps(folder: SweepFolder, trial: Trial) -> int | None:
    try:
        return int(json.loads(folder.trial(trial.id).plan.read_text())["steps"])
    except (OSError, ValueError, KeyError):
        return None
