"""`phalanx status`: what runs there are and how they are. Reads files only."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from launch.cli_help import parser
from launch.runs import find_run
from launch.slurm.jobstate import JobState, SlurmError
from launch.slurm.record import id_fields
from launch.slurm.standing import live_jobs, once, slurm_json, slurm_words
from launch.sweep_status import Jobs, find_sweep, sweep_folders, sweep_jobs, sweep_json, sweep_line, sweep_lines
from orchestrator.control.badnodes import avoided
from orchestrator.observe.aligned import aligned
from orchestrator.observe.goodput import Goodput, goodput_ledger
from orchestrator.observe.ledger import EventName, read_events
from orchestrator.observe.metrics import read_rows
from orchestrator.observe.state import RunState, RunStatus, run_folders, run_state
from orchestrator.observe.units import duration_text, plural
from orchestrator.observe.wording import event_line, goodput_words
from orchestrator.runfolder import RunFolder
from orchestrator.sweep.folder import SweepFolder

_EXAMPLES = """  phalanx status                        every run under runs/
  phalanx status quickstart-1a2b3c4d    one run: attempts, last events, checkpoint, W&B
  phalanx status quickstart-sweep-1a2b  one sweep: its trials and the best of them
  phalanx status --json                 the same for programs: of sweeps `sweep` is the id and run_id is null"""
_LAST_EVENTS = 8
T = TypeVar("T")


def run(argv: Sequence[str]) -> int:
    """The verb. Exit code 0; 2 where the run is not known (as ConfigError) or the arguments are wrong.

    Raises SlurmError, after all else is told, where SLURM does not answer or says what is not known; for programs the
    list of all is whole without it: what SLURM was asked for is null, and a line on stderr says why.
    """
    arguments = _parser().parse_args(argv)
    now_s = time.time()
    if arguments.run is None:
        problem = _tell_all(arguments.root, now_s, is_json=arguments.json)
        if problem is None or not arguments.json:
            return _told(problem)
        print(f"phalanx status: SLURM is not in this: {problem}", file=sys.stderr)
        return 0
    if (sweep := find_sweep(arguments.run, arguments.root)) is not None:
        tell = (lambda sweep, jobs: [as_json(sweep_json(sweep, jobs))]) if arguments.json else sweep_lines
        return _told(_tell_sweep(sweep, tell))
    folder = find_run(arguments.run, arguments.root)
    status, events = run_state(folder), read_events(folder.events)
    goodput = goodput_of(folder, events, now_s if status.state is RunState.running else None)
    if arguments.json:
        job, problem = _asked(lambda: slurm_json(folder))
        more = {"wandb": wandb_words(folder), "goodput": goodput_json(goodput), "slurm": job}
        more["avoided_nodes"] = sorted(avoided(folder))
        print(as_json(asdict(status) | more | {"events": events[-_LAST_EVENTS:]}))
    else:
        slurm, problem = _asked(lambda: slurm_words(folder, now_s))
        more = {"slurm": slurm, "avoided_nodes": sorted(avoided(folder)), "command": started_by(folder)}
        print("\n".join(details(status, events, goodput, wandb_words(folder), now_s, **more)))
    return _told(problem)


def _tell_all(root: Path, now_s: float, *, is_json: bool) -> SlurmError | None:
    """Print the runs and sweeps under `root`; why SLURM does not say how their jobs are, or None."""
    folders, sweeps = run_folders(root), sweep_folders(root)
    statuses = [run_state(folder) for folder in folders]
    ask = once()
    jobs, problem = _asked(lambda: live_jobs(folders, ask))
    asked = [(sweep, *_asked(lambda sweep=sweep: sweep_jobs(sweep, ask))) for sweep in sweeps]
    if is_json:
        runs = [asdict(status) | {"slurm": _job_json((jobs or {}).get(status.path))} for status in statuses]
        print(as_json([*runs, *({"run_id": None} | sweep_json(sweep, tasks) for sweep, tasks, _ in asked)]))
    else:
        print(table(statuses, now_s, jobs))
        for sweep, tasks, _ in asked:
            print(sweep_line(sweep, tasks))
        if not (statuses or sweeps):
            print(f"no runs under {root}/; start one: phalanx train experiment=quickstart")
    return next((found for found in (problem, *(each[2] for each in asked)) if found is not None), None)


def _job_json(job: tuple[str, JobState] | None) -> dict[str, Any] | None:
    """Of a job that waits or runs: some of the fields that `status RUN --json` has."""
    return None if job is None else {**id_fields(job[0]), "state": str(job[1])}


def _asked(ask: Callable[[], T]) -> tuple[T | None, SlurmError | None]:
    """(what SLURM says, None), or (None, why it does not): the run's own files are told all the same."""
    try:
        return ask(), None
    except SlurmError as error:
        return None, error


def _tell_sweep(sweep: SweepFolder, tell: Callable[[SweepFolder, Jobs | None], list[str]]) -> SlurmError | None:
    """Print it; why SLURM does not say how its tasks are, or None."""
    jobs, problem = _asked(lambda: sweep_jobs(sweep, once()))
    print("\n".join(tell(sweep, jobs)))
    return problem


def _told(problem: SlurmError | None) -> int:
    if problem is not None:
        sys.stdout.flush()
        raise problem
    return 0


def _parser() -> argparse.ArgumentParser:
    parsing = parser("status", "What runs there are and how they are.", _EXAMPLES)
    parsing.add_argument("run", nargs="?", help="a run's or a sweep's id or folder; without it, a table of all")
    parsing.add_argument("--root", type=Path, default=Path("runs"), help="where the runs are (default: runs)")
    parsing.add_argument("--json", action="store_true", help="for programs")
    return parsing


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False, default=str)


def table(statuses: Sequence[RunStatus], now_s: float, jobs: Mapping[str, tuple[str, JobState]] | None = None) -> str:
    """One line a run under a header; nothing where there is none. `jobs`: path -> its live SLURM job."""
    if not statuses:
        return ""
    header = ("ID", "STATE", "STEP/TOTAL", "LOSS", "TOK/S", "RESTARTS", "ETA", "AGE", "PATH")
    return "\n".join(
        aligned([header, *(_cells(status, now_s, (jobs or {}).get(status.path)) for status in statuses)])
    )


def _cells(status: RunStatus, now_s: float, job: tuple[str, JobState] | None) -> tuple[str, ...]:
    state = str(status.state)
    if job is not None:
        state = f"queued, job {job[0]}" if job[1].is_waiting else f"{state}, job {job[0]}"
    return (
        status.run_id,
        state,
        f"{status.step}/{'?' if status.steps is None else status.steps}",
        "-" if status.loss is None else f"{status.loss:.4f}",
        "-" if status.tokens_per_s is None else f"{status.tokens_per_s:,.0f}",
        str(status.restarts),
        "-" if status.eta_s is None else duration_text(status.eta_s),
        "-" if status.started_s is None else duration_text(now_s - status.started_s),
        status.path,
    )


def goodput_of(folder: RunFolder, events: Sequence[dict[str, Any]], now_s: float | None) -> Goodput:
    """Where the run's time went, up to `now_s` where it goes on."""
    return goodput_ledger(events, read_rows(folder.metrics)).closed(now_s)


def goodput_json(goodput: Goodput) -> dict[str, Any]:
    return {"ratio": goodput.ratio, "wall_s": goodput.wall_s, "spent_s": goodput.seconds()}


def details(
    status: RunStatus,
    events: Sequence[dict[str, Any]],
    goodput: Goodput,
    wandb: str | None,
    now_s: float,
    *,
    slurm: str | None = None,
    avoided_nodes: Sequence[str] = (),
    command: str | None = None,
) -> list[str]:
    """One run: a line for each thing worth knowing, its last events, and what to do next."""
    of = "" if status.steps is None else f" of {status.steps}"
    lost = f", {duration_text(status.downtime_s)} lost" if status.downtime_s else ""
    rows = {
        "run": status.run_id,
        "state": str(status.state),
        "SLURM": slurm,
        "step": f"{status.step}{of}",
        "loss": "none yet" if status.loss is None else f"{status.loss:.4f}",
        "speed": "-" if status.tokens_per_s is None else f"{status.tokens_per_s:,.0f} tok/s",
        "workers": status.workers,
        "left alone": f"{', '.join(avoided_nodes)}; bad_nodes.txt says why" if avoided_nodes else None,
        "time left": None if status.eta_s is None else duration_text(status.eta_s),
        "attempts": f"{status.attempts} ({plural(status.restarts, 'restart')}{lost})",
        "goodput": goodput_words(goodput) if goodput.wall_us else None,
        "checkpoint": status.checkpoint or "none",
        "W&B": wandb,
        "folder": status.path,
    }
    lines = [f"{name:<12}{value}" for name, value in rows.items() if value is not None]
    if events:
        lines += ["", "last events"]
        lines += [f"  {_event_words(event, now_s)}" for event in events[-_LAST_EVENTS:]]
    return [*lines, "", *next_lines(status, events, command)]


def _event_words(event: dict[str, Any], now_s: float) -> str:
    words = event_line(event) or str(event["event"]).replace("_", " ")
    return f"{duration_text(max(0.0, now_s - event['t'])):>7} ago  {words}"


def started_by(folder: RunFolder) -> str | None:
    """The command that goes on with the run; None where it was not a `train` that somebody typed here."""
    try:
        facts = json.loads(folder.env.read_text())
        words, where = [str(word) for word in facts["command"]], str(facts["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if words[1:2] != ["train"] or {"-m", "--multirun"} & {*words} or folder.slurm.exists():
        return None
    command = shlex.join(["phalanx", *words[1:]])
    return command if where == str(Path.cwd()) else f"cd {shlex.quote(where)} && {command}"


def next_lines(status: RunStatus, events: Sequence[dict[str, Any]], command: str | None = None) -> list[str]:
    """The digest of a failed run and the command that is most likely wanted next. `command` goes on with the run."""
    quoted = shlex.quote(status.path)
    match status.state:
        case RunState.running:
            return [f"next        phalanx logs -f {quoted}"]
        case RunState.finished:
            return [f"next        phalanx generate {quoted}"]
        case RunState.failed:
            failed = [event for event in events if event["event"] == EventName.run_failed]
            return [*str(failed[-1].get("digest") or "").splitlines(), f"next        phalanx logs {quoted}"]
        case _ if command is not None:
            return [f"next        {command}", f"            phalanx logs {quoted}"]
        case _:
            return [f"next        the command that started it goes on from its checkpoint; phalanx logs {quoted}"]


def wandb_words(folder: RunFolder) -> str | None:
    """Whether W&B has the run, and how to send what it lacks; None where W&B never had a part in it."""
    segments = [path for path in folder.wandb.glob("*run-*") if path.is_dir()]
    offline = [path for path in segments if path.name.startswith("offline-run-") and not any(path.glob("*.synced"))]
    if not segments:
        return None
    if not offline:
        return f"online, {plural(len(segments), 'segment')}"
    sync = f"phalanx sync {shlex.quote(str(folder.path))}"
    return f"offline, {plural(len(offline), 'segment')}; to upload: {sync}"
