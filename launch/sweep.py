"""`phalanx sweep`: many trials of one recipe on one cluster; the same command goes on with what was begun."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launch import sweep_array, sweep_job
from launch.cli_help import parser
from launch.progress import counted
from launch.slurm.jobstate import SlurmError
from launch.sweep_plan import preview_json, preview_lines, sweep_cost, trial_costs, trials_at_once
from launch.sweep_words import SweepWords, read_words
from orchestrator.config import RunConfig, Scheduler, WandbMode
from orchestrator.control.notices import Notices
from orchestrator.control.opening import read_data
from orchestrator.data.files import join, write_atomically
from orchestrator.errors import EXIT_PREEMPTED, ConfigError
from orchestrator.fleet.surroundings import here, is_joining
from orchestrator.observe.jsonlines import read_records
from orchestrator.runfolder import RunFolder
from orchestrator.spec import NodeFacts
from orchestrator.sweep.description import base_recipe, default_id, describe, differences
from orchestrator.sweep.driver import SweepDriver
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.measure import EVALUATED
from orchestrator.sweep.packing import gang_of
from orchestrator.sweep.pbt import Child, children
from orchestrator.sweep.pruning import Rungs, rung_problem, rungs_of
from orchestrator.sweep.recipe import Recipe
from orchestrator.sweep.report import write_report
from orchestrator.sweep.sampler import suggest
from orchestrator.sweep.settings import Algorithm, Metric, Pruner, is_maximised
from orchestrator.sweep.space import parameter_words
from orchestrator.sweep.study import Trial, trial_id
from orchestrator.sweep.studylog import locked
from orchestrator.sweep.table import SweepTable
from orchestrator.sweep.wording import end_lines, pruning_text

EXAMPLES = """  phalanx sweep experiment=quickstart optim.lr=1e-3,2e-3,4e-3 optim.warmup_steps=10,20
  phalanx sweep experiment=quickstart sweep=asha 'optim.lr=tag(log,interval(1e-4,1e-2))' sweep.trials=24
  phalanx sweep experiment=quickstart sweep=pbt 'optim.lr=tag(log,interval(1e-4,1e-2))' sweep.population=4
  phalanx sweep experiment=quickstart sweep=lr --preview
  phalanx sweep experiment=quickstart 'model=glob(gpt_1*)' cluster.address=auto
  phalanx sweep experiment=quickstart cluster=slurm data.path=/shared/stdlib run.root=/shared/runs optim.lr=1e-3,2e-3
  phalanx sweep --one-job cluster=slurm experiment=quickstart data.path=/shared/stdlib run.root=/shared/runs \\
      sweep=asha 'optim.lr=tag(log,interval(1e-4,1e-2))' sweep.max_concurrent=4
  phalanx train -m experiment=quickstart optim.lr=1e-3,2e-3       the same as a grid

Values are in Hydra's grammar: 1,2  choice(...)  range(...)  interval(...)  glob(...)  tag(log, ...).
Ctrl-C or SIGTERM lets every trial save and leave (exit code 75); the same command goes on.
exit codes: 0 every trial finished or was pruned; 1 one failed; 2 wrong config; 75 stopped early but resumable"""
GANG_TIMEOUT_S = 3600
"""How long a trial may wait in Ray for its nodes: on a shared cluster others may hold them."""


def run(argv: list[str]) -> int:
    """The verb. Raises ConfigError, and starts nothing, where anything can be known to be wrong."""
    options, words = _parser().parse_known_args(argv)
    read = read_words(words, partial(counted, "composing trials"))
    base = read.compose(read.trials()[0])
    folder = SweepFolder(Path(base.run.root) / (read.settings.id or default_id(base, read.algorithm, read.space)))
    metric = metric_of(read, base)
    rungs = rungs_for(read, base, metric)
    if options.preview:
        ids = {trial_id(folder.sweep_id, parameters): parameters for parameters in read.trials()}
        costs = trial_costs(read, ids)
        whole = sweep_cost(read, costs, trials_at_once(read, _known_nodes(read, base)))
        if options.json:
            made = preview_json(read, costs, whole, folder.sweep_id, price_per_hour=options.price)
            print(json.dumps(made, indent=2))
        else:
            lines = preview_lines(read, costs, whole, folder.sweep_id, rungs, price_per_hour=options.price)
            print("\n".join(lines))
        return 0
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    _check_tracking(base)
    if options.one_job:
        _check_one_job(base)
        sweep_job.check(read, base)
    elif is_array(base):
        sweep_array.check(read)
    else:
        _check_fit(read)
    _check_data(read)
    is_new = not folder.path.exists()
    with locked(folder) as lock, Notices() as notices:
        _describe(folder, read, base, metric, is_accepted=options.accept_changes)
        if options.one_job or is_array(base):
            try:
                if options.one_job:
                    return sweep_job.submit(folder, read, base, words, lock)
                return sweep_array.submit(folder, _recipe(folder, read, base, metric, rungs), read, words, lock)
            except (ConfigError, SlurmError):
                if is_new and not has_trials(folder):
                    shutil.rmtree(folder.path, ignore_errors=True)
                raise
        return _search(folder, read, _recipe(folder, read, base, metric, rungs), notices)


def is_array(base: RunConfig) -> bool:
    """Whether the trials become tasks of a SLURM job array, each with a Ray of its own."""
    return base.cluster.scheduler is Scheduler.slurm and base.cluster.address is None


def recipe_of(folder: SweepFolder, words: Sequence[str]) -> tuple[Recipe, SweepWords]:
    """Of a sweep that was typed with `words`."""
    read = read_words(words)
    base = read.compose(read.trials()[0])
    metric = metric_of(read, base)
    return _recipe(folder, read, base, metric, rungs_for(read, base, metric)), read


def run_grid(argv: list[str]) -> int:
    """`phalanx train -m`: as Hydra users expect, every combination of the listed values."""
    return run([*(word for word in argv if word not in ("-m", "--multirun")), "sweep=grid"])


def metric_of(read: SweepWords, base: RunConfig) -> Metric:
    """The metric, which trials must have. Raises ConfigError where they don't evaluate."""
    evaluates = base.train.eval_every_steps > 0
    metric = read.settings.metric or (Metric.eval_loss if evaluates else Metric.loss)
    if metric in (Metric.eval_loss, Metric.eval_bits_per_byte) and not evaluates:
        raise ConfigError(
            f"sweep.metric={metric} needs evaluations, train.eval_every_steps=0 makes none; "
            "use train.eval_every_steps=50, or sweep.metric=loss"
        )
    return metric


def rungs_for(read: SweepWords, base: RunConfig, metric: Metric) -> Rungs:
    """Where trials are judged: only where they have the metric. Raises ConfigError where that is nowhere."""
    is_evaluated = metric in EVALUATED
    rungs = rungs_of(read.settings, base.train.steps, base.train.eval_every_steps if is_evaluated else 1)
    problem = rung_problem(rungs, (read.compose(parameters).train.steps for parameters in read.trials()))
    differ = any(dimension.key in ("train", "train.eval_every_steps") for dimension in read.space)
    if problem is None and is_evaluated and differ and rungs.pruner is not Pruner.none:
        problem = (
            f"sweep.pruner={rungs.pruner} compares trials at the same evaluations, and train.eval_every_steps "
            "differs between them; give it one value, or use sweep.metric=loss"
        )
    if problem is not None:
        raise ConfigError(problem)
    return rungs


def _parser() -> argparse.ArgumentParser:
    made = parser(
        "sweep", "Many trials of one recipe on one cluster.", EXAMPLES, "[options] KEY=VALUES ... [KEY=VALUE ...]"
    )
    made.add_argument("--preview", action="store_true", help="list the trials and their cost; start nothing")
    made.add_argument(
        "--one-job", action="store_true", help="on SLURM: one job whose nodes the trials share, instead of an array"
    )
    made.add_argument("--price", type=float, help="with --preview: of one GPU for an hour, what the sweep costs")
    made.add_argument("--json", action="store_true", help="with --preview: one JSON object")
    made.add_argument(
        "--accept-changes", action="store_true", help="go on with a sweep although its base recipe has changed"
    )
    return made


def _check_tracking(base: RunConfig) -> None:
    """What is exported for W&B wins over the config, in every trial."""
    wandb_id = os.environ.get("WANDB_RUN_ID")
    if wandb_id and base.tracking.wandb.mode is not WandbMode.disabled:
        raise ConfigError(
            f"WANDB_RUN_ID={wandb_id} would make one W&B run of all trials; unset it: each has an id of its own"
        )


def _check_one_job(base: RunConfig) -> None:
    if not is_array(base):
        raise ConfigError(
            "--one-job is for a SLURM cluster: cluster=slurm, and no cluster.address; elsewhere trials share one Ray "
            "anyway"
        )


def _check_fit(read: SweepWords) -> None:
    """Where the sweep will start Ray here, what it will offer is known. Raises PlacementError."""
    configs = list(map(read.compose, read.trials()))
    nodes = _known_nodes(read, configs[0])
    if nodes is not None:
        for config in configs:
            gang_of(config, nodes)


def _known_nodes(read: SweepWords, base: RunConfig) -> list[NodeFacts] | None:
    """What a Ray that the sweep starts here will offer; None where the trials run elsewhere."""
    if is_array(base) or is_joining(base.cluster):
        return None
    return [here(_min_cpus(list(map(read.compose, read.trials()))))]


def _min_cpus(configs: Sequence[RunConfig]) -> int:
    return max(config.cluster.num_workers * config.cluster.cpus_per_worker for config in configs)


def _check_data(read: SweepWords) -> None:
    """Plan every trial that can be named in advance, on its data. Raises ConfigError or DataError."""
    for config in {c.data.path: c for c in map(read.compose, read.trials())}.values():
        read_data(config)
    trial_costs(read, {str(number): parameters for number, parameters in enumerate(read.trials())})


def _describe(folder: SweepFolder, read: SweepWords, base: RunConfig, metric: Metric, *, is_accepted: bool) -> None:
    """Hold the sweep to what its first start recorded, where that made trials, and record this one."""
    common = base_recipe(base, read_data(base), read.space)
    now = describe(read.settings, read.algorithm, metric, read.space, common)
    if folder.description.exists() and has_trials(folder) and not is_accepted:
        found = differences(json.loads(folder.description.read_text()), now, folder.sweep_id)
        if found:
            raise ConfigError(*found)
    write_atomically(str(folder.description), (json.dumps(now, indent=2) + "\n").encode())


def has_trials(folder: SweepFolder) -> bool:
    """Or is a job that will make them."""
    return any(read_records(folder.study)) or RunFolder(folder.path).jobs.exists()


def _search(folder: SweepFolder, read: SweepWords, recipe: Recipe, notices: Notices) -> int:
    metric, pruning = recipe.metric, pruning_text(recipe.rungs, recipe.base.train.steps)
    print(f"sweep {folder.sweep_id} in {folder.path}: {read.algorithm} by {metric}, {pruning}")
    table = SweepTable(sys.stdout, sys.stdout.isatty(), metric)
    try:
        driver = SweepDriver(folder, recipe, table, notices)
        code = driver.run()
    finally:
        table.close()
    study = driver.study
    write_report(folder, study, read.space, metric)
    folders = {"report": str(folder.report), "folder": str(folder.path)}
    print("\n".join(end_lines(study, metric, read.base_words, folders)))
    if code == EXIT_PREEMPTED:
        print("stopped: the same command goes on")
    return code


def _recipe(folder: SweepFolder, read: SweepWords, base: RunConfig, metric: Metric, rungs: Rungs) -> Recipe:
    is_grid = read.algorithm is Algorithm.grid
    trials = read.trials()
    return Recipe(
        settings=read.settings,
        metric=metric,
        rungs=rungs,
        base=base,
        min_cpus=_min_cpus(list(map(read.compose, trials))),
        listed=trials if is_grid else [],
        corners=trials,
        compose=read.compose,
        config=lambda trial: read.compose(trial.parameters, part_words(folder, read, trial)),
        command=partial(_command, folder, read),
        suggest=partial(_suggest, read, metric),
        breed=partial(_breed, read, metric, base.train.steps),
    )


def _suggest(read: SweepWords, metric: Metric, trials: list[Trial], tries: int) -> dict[str, str] | None:
    if read.algorithm in (Algorithm.grid, Algorithm.pbt) or len(trials) >= read.settings.trials:
        return None
    return suggest(
        read.algorithm,
        read.space,
        trials,
        seed=read.settings.seed,
        tries=tries,
        maximise=is_maximised(metric),
    )


def _breed(read: SweepWords, metric: Metric, total_steps: int, trials: Sequence[Trial]) -> list[Child]:
    if read.algorithm is not Algorithm.pbt:
        return []
    maximise = is_maximised(metric)
    return children(read.settings, read.space, trials, total_steps=total_steps, maximise=maximise)


def part_words(folder: SweepFolder, read: SweepWords, trial: Trial) -> list[str]:
    """What a round of a population's member adds: its end, the schedule of the whole run, its parent's checkpoint."""
    if trial.part is None:
        return []
    config = read.compose(trial.parameters)
    words = [f"train.steps={trial.part.steps}"]
    if config.optim.schedule_steps is None:
        words.append(f"optim.schedule_steps={config.train.steps}")
    if trial.part.parent is not None:
        url = config.checkpoint.url
        parent = trial.part.parent
        place = str(folder.trial(parent).checkpoints.resolve()) if url is None else join(url, parent)
        words.append(f"checkpoint.init_from={place}")
    return words


def _command(folder: SweepFolder, read: SweepWords, trial: Trial) -> list[str]:
    """`phalanx train` of one trial, in a folder of its own."""
    typed = {word.partition("=")[0] for word in read.base_words}
    ours = [f"run.root={folder.trials}", f"run.id={trial.id}"]
    if "tracking.wandb.group" not in typed:
        ours.append(f"tracking.wandb.group={folder.sweep_id}")
    config = read.compose(trial.parameters)
    if "cluster.start_timeout_s" not in typed and not is_array(config):
        ours.append(f"cluster.start_timeout_s={GANG_TIMEOUT_S}")
    url = config.checkpoint.url
    if url is not None:
        ours.append(f"checkpoint.url={join(url, trial.id)}")
    words = [*read.base_words, *parameter_words(trial.parameters), *part_words(folder, read, trial), *ours]
    return [sys.executable, "-m", "launch.cli", "train", *words]
