"""A sweep as one SLURM job array: each task is one trial, which lives as any submitted run does.

Nobody watches over the tasks: each trial's end is recorded by its own task, and what was lost on the way by the next
start of the same command.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from launch.slurm import commands
from launch.slurm.array import array_problems, array_text
from launch.slurm.jobspec import JobSpec
from launch.slurm.jobstate import SlurmError
from launch.slurm.record import Submission, append_submission, link_output, newest_submission
from launch.slurm.request import directives, job_request, profile_problems
from launch.slurm.script import script_text
from launch.submit import TEMPLATE, check_site, spec_of, wanted_device
from launch.sweep_status import Jobs, live_tasks, tasks_of
from launch.sweep_words import SweepWords
from orchestrator.codec import encode
from orchestrator.config import RunConfig
from orchestrator.data.files import write_atomically
from orchestrator.errors import EXIT_FAILED, ConfigError
from orchestrator.observe.state import RunState, run_state
from orchestrator.runfolder import RunFolder
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.judge import Judge
from orchestrator.sweep.recipe import Recipe, new_parameters
from orchestrator.sweep.report import write_report
from orchestrator.sweep.space import Parameters
from orchestrator.sweep.study import ENDED, Record, Trial, TrialState, is_startable, trial_id
from orchestrator.sweep.studylog import StudyLog
from orchestrator.sweep.wording import counts_text


def check(read: SweepWords) -> None:
    """Raises ConfigError, with nothing submitted, for all that keeps this sweep from being an array here."""
    configs = list(map(read.compose, read.trials()))
    device = wanted_device(configs[0])
    problems = [
        *array_problems(read.settings, read.algorithm, configs),
        *profile_problems(configs[0].cluster, device),
    ]
    if problems:
        raise ConfigError(*problems)


def submit(folder: SweepFolder, recipe: Recipe, read: SweepWords, words: Sequence[str], lock: int) -> int:
    """One array of all trials that are to be started; the sweep's `lock` is held. The exit code."""
    log = StudyLog(folder)
    try:
        check_site(recipe.base, wanted_device(recipe.base), folder.trial(next(iter(log.study.trials), "")))
        live = live_tasks(folder, commands.queue)
        with log.unless_refused(ConfigError, SlurmError, OSError):
            _add_all(folder, recipe, log)
            _take_up(folder, log, live)
            _settle_ended(folder, Judge(folder, recipe, log), log)
            waiting = [t for t in log.study.trials.values() if is_startable(t, recipe.settings.max_retries)]
            # A Ctrl-C is only counted meanwhile: control/notices.py.
            job = _submit(folder, recipe, waiting, words, lock) if waiting else None
        if job is None:
            write_report(folder, log.study, read.space, recipe.metric)
            print(f"nothing to submit: {counts_text(log.study)}; see phalanx status {folder.quoted}")
            return EXIT_FAILED if log.study.in_state(TrialState.failed) else 0
        for trial in waiting:
            _record_start(folder, log, trial, job)
    finally:
        log.close()
    print(f"Submitted batch job {job}")  # as sbatch says it: scripts look for that
    for name, value in (
        ("sweep", folder.sweep_id),
        ("trials", f"{len(waiting)} as tasks {array_text([trial.number for trial in waiting], None)}"),
        ("follow", f"phalanx status {folder.quoted}"),
        ("end", f"scancel {job}"),
    ):
        print(f"{name:<12}{value}")
    return 0


def settle(folder: SweepFolder, recipe: Recipe, read: SweepWords, trial: str) -> None:
    """Record the end of one trial, by its own task; the sweep's lock is held."""
    log = StudyLog(folder)
    try:
        if log.study.trials[trial].state not in ENDED:  # waiting: whoever submitted it was killed
            Judge(folder, recipe, log).at_end(log.study.trials[trial], is_stopping=False)
        write_report(folder, log.study, read.space, recipe.metric)
    finally:
        log.close()


def _add_all(folder: SweepFolder, recipe: Recipe, log: StudyLog) -> None:
    def id_of(parameters: Parameters) -> str:
        return trial_id(folder.sweep_id, parameters)

    listed = [parameters for parameters in recipe.listed if id_of(parameters) not in log.study.trials]
    for parameters in listed:
        log.add(id_of(parameters), parameters)
    while (new := new_parameters(recipe, log.study.trials, id_of)) is not None:
        trial = log.add(id_of(new), new)
        try:
            recipe.compose(new)
        except ConfigError as error:
            log.record(Record.trial_refused, trial, reason=str(error))


def _record_start(folder: SweepFolder, log: StudyLog, trial: Trial, job: int) -> None:
    _note(folder, trial, job)
    log.record(Record.trial_started, trial, pid=0, born_s=0.0, host="", job=job)


def _take_up(folder: SweepFolder, log: StudyLog, live: Jobs) -> None:
    """Tasks of an array whose `sweep` was killed before it had written down that they are started."""
    for trial in log.study.in_state(TrialState.waiting, TrialState.interrupted, TrialState.failed):
        task, _ = live.get(str(folder.trial(trial.id).path), ("", None))
        job = task.partition("_")[0]
        if job and log.starts.get(trial.id, {}).get("job") != int(job):
            _record_start(folder, log, trial, int(job))


def _settle_ended(folder: SweepFolder, judge: Judge, log: StudyLog) -> None:
    """Trials whose task has ended without recording it: one that was cancelled or killed is at no fault."""
    for trial in log.study.in_state(TrialState.running):
        newest = newest_submission(folder.trial(trial.id))
        view = commands.job(newest.slurm_id) if newest else None
        if view is None or view.state.is_end:
            is_cut_off = run_state(folder.trial(trial.id)).state in (RunState.interrupted, RunState.preempted)
            judge.at_end(trial, is_stopping=is_cut_off)


def _submit(folder: SweepFolder, recipe: Recipe, trials: Sequence[Trial], words: Sequence[str], lock: int) -> int:
    """The array's job id. A task's number is its trial's own, for good: what is queued already still finds it."""
    config, device = recipe.base, wanted_device(recipe.base)
    folder.slurm.mkdir(parents=True, exist_ok=True)
    specs = [_write_spec(folder, recipe, trial, config, device) for trial in trials]
    tasks = {**tasks_of(folder), **{str(trial.number): trial.id for trial in trials}}
    write_atomically(str(folder.array), json.dumps({"words": list(words), "tasks": tasks}, indent=2).encode())
    script = folder.array_script.with_suffix(".new")
    script.write_text(_script(folder, recipe, trials, device, specs[0].host_python))
    try:
        commands.test_only(script)
        script.replace(folder.array_script)  # with which tasks that are queued may submit their successors
    finally:
        script.unlink(missing_ok=True)
    return commands.submit(folder.array_script, lock=lock)


def _write_spec(folder: SweepFolder, recipe: Recipe, trial: Trial, config: RunConfig, device: str) -> JobSpec:
    run = folder.trial(trial.id)
    run.slurm.mkdir(parents=True, exist_ok=True)
    train = recipe.command(trial)
    spec = spec_of(config, train[train.index("train") + 1 :], device, RunFolder(run.path.absolute()))
    run.job_spec.write_text(json.dumps(encode(spec), indent=2) + "\n")
    return spec


def _script(folder: SweepFolder, recipe: Recipe, trials: Sequence[Trial], device: str, python: str) -> str:
    cluster = recipe.base.cluster
    return script_text(
        TEMPLATE.read_text(),
        directives=directives(
            cluster,
            job_request(cluster, device),
            name=folder.sweep_id,
            chdir=str(Path.cwd()),
            output=str(folder.task_output("%A_%a").absolute()),
            exclude=cluster.slurm.exclude,
            array=array_text([trial.number for trial in trials], recipe.settings.max_concurrent),
        ),
        setup=cluster.slurm.setup,
        environment=cluster.slurm.environment,
        command=[python, "-P", "-m", "launch.job.arraytask", str(folder.path.absolute())],
    )


def _note(folder: SweepFolder, trial: Trial, job: int) -> None:
    """In the trial's run folder, as for any submitted run: its job and where that prints."""
    run, submission = folder.trial(trial.id), Submission(job_id=job, time_s=time.time(), task=trial.number)
    append_submission(run, submission)
    link_output(folder.task_output(submission.slurm_id), (run.job_output(submission.slurm_id), folder.log(trial.id)))
