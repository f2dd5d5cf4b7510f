"""How a sweep is, read from the files of its folder, for `phalanx status`."""

import json
from pathlib import Path
from typing import Any

from launch.slurm.standing import live_jobs
from orchestrator.codec import encode
from orchestrator.observe.aligned import aligned
from orchestrator.observe.jsonlines import read_records
from orchestrator.observe.metrics import StepRow, read_last_rows
from orchestrator.observe.state import is_held
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.settings import Metric, is_maximised
from orchestrator.sweep.space import parameter_words
from orchestrator.sweep.study import Study, Trial, TrialState, read_study
from orchestrator.sweep.wording import HEADER, counts_text, table_row, value_text


def find_sweep(name: str, root: Path) -> SweepFolder | None:
    """The sweep with the id `name` under `root`, or whose folder `name` is; None where there is none."""
    folders = (SweepFolder(path) for path in (root / name, Path(name)))
    return next((folder for folder in folders if folder.description.is_file()), None)


def sweep_folders(root: Path) -> list[SweepFolder]:
    """The sweeps under `root`, by name."""
    return [SweepFolder(file.parent) for file in sorted(root.glob("*/sweep.json"))]


def sweep_line(folder: SweepFolder) -> str:
    """`sweep NAME  running  24 trials: 3 finished, ...`."""
    study = read_study(read_records(folder.study))
    return f"sweep {folder.sweep_id}  {_state(folder, study)}  {counts_text(study)}  {folder.path}"


def sweep_lines(folder: SweepFolder) -> list[str]:
    """All trials, the best one, what to do next."""
    study, metric = read_study(read_records(folder.study)), _metric(folder)
    rows = [
        table_row(trial, metric, _newest_row(folder, trial), _steps(folder, trial)) for trial in study.trials.values()
    ]
    best = study.best(maximise=is_maximised(metric))
    words = "none yet"
    if best is not None:
        words = (
            f"{best.id}: {metric} {value_text(best.value, metric)} with {' '.join(parameter_words(best.parameters))}"
        )
    state = _state(folder, study)
    next_line = f"open {folder.report}" if folder.report.exists() else f"phalanx logs {folder.trials}/TRIAL"
    if state == "stopped":
        next_line = "the command that started it goes on"
    return [
        f"sweep       {folder.sweep_id}",
        f"state       {state}",
        f"trials      {counts_text(study)}",
        f"best        {words}",
        f"folder      {folder.path}",
        "",
        *aligned([HEADER, *rows]),
        "",
        f"next        {next_line}",
    ]


def sweep_json(folder: SweepFolder) -> dict[str, Any]:
    study, metric = read_study(read_records(folder.study)), _metric(folder)
    best = study.best(maximise=is_maximised(metric))
    return {
        "sweep": folder.sweep_id,
        "path": str(folder.path),
        "state": _state(folder, study),
        "metric": str(metric),
        "best": None if best is None else best.id,
        "trials": [encode(trial) for trial in study.trials.values()],
    }


def _state(folder: SweepFolder, study: Study) -> str:
    if is_held(folder.lock):
        return "running"
    going = study.in_state(TrialState.running, TrialState.waiting, TrialState.interrupted)
    if going and folder.array.exists():
        runs = [folder.trial(trial.id) for trial in going]
        if any(is_held(run.lock) for run in runs):
            return "running"
        if live_jobs(runs):
            return "queued"
    return "stopped" if going else "ended"


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
