"""`phalanx submit`: the same run as a SLURM job, or a RayJob of KubeRay.

Imports neither torch nor ray: it runs on a login node.
"""

import contextlib
import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from launch.cli_help import parser
from launch.compose import compose
from launch.job.ending import slowest_save_s
from launch.kuberay import submitting as kuberay
from launch.plan import manifest_if_any, planned_device
from launch.slurm import commands
from launch.slurm.finding import newest_job
from launch.slurm.jobspec import JobSpec, job_spec
from launch.slurm.partitions import request_problems
from launch.slurm.record import Submission, append_submission
from launch.slurm.request import directives, job_request, profile_problems
from launch.slurm.script import script_text
from launch.slurm.sharing import not_shared
from orchestrator import holding
from orchestrator.codec import encode
from orchestrator.config import Device, RunConfig, Scheduler
from orchestrator.control.badnodes import excluded, read_bad_nodes
from orchestrator.control.opening import check_store, is_finished, plan_for, read_data
from orchestrator.errors import ConfigError
from orchestrator.observe.ledger import read_events
from orchestrator.plan import plan_run, run_id_of
from orchestrator.runfolder import RunFolder

TEMPLATE = Path(__file__).resolve().parents[1] / "slurm/job.sbatch"
EXAMPLES = """  phalanx submit cluster=slurm experiment=quickstart data.path=/shared/stdlib run.root=/shared/runs
  phalanx submit cluster=slurm_h100x8 experiment=gpt_1_3b_h100x8 cluster.slurm.account=abc --dry-run
  phalanx submit --config-dir my_conf cluster=ours experiment=books    # my_conf/cluster/ours.yaml
  phalanx submit cluster=kuberay_h100x8 experiment=gpt_1_3b_h100x8 run.id=first cluster.kuberay.image=... --dry-run
  phalanx status RUN; phalanx logs RUN --job -f; phalanx cancel RUN

A SLURM job starts a Ray of its own on its nodes, trains, and goes back into the queue at its time limit until the run
is done. The same command submits an interrupted run again. docs/slurm.md tells more. With cluster=kuberay the run
becomes a RayJob for Kubernetes: docs/ray.md."""


def run(argv: list[str]) -> int:
    """Submit, or print the script. Raises ConfigError, with nothing submitted, for all that can be known before."""
    usage = "[--dry-run] [--config-dir DIR] [KEY=VALUE ...]"
    reading = parser("submit", "Run as a SLURM job, or a RayJob of KubeRay.", EXAMPLES, usage)
    reading.add_argument("--dry-run", action="store_true", help="print the script or manifest, submit nothing")
    options, words = reading.parse_known_args(argv)
    composed = compose(words)
    config = composed.config
    device = wanted_device(config)
    if config.cluster.scheduler is Scheduler.kuberay:
        return kuberay.submit(config, composed.overrides, device, is_dry_run=options.dry_run)
    if problems := profile_problems(config.cluster, device):
        raise ConfigError(*problems)
    if options.dry_run:
        print(dry_script(config, composed.overrides, device), end="")
        return 0
    return submit(config, composed.overrides, device)


def wanted_device(config: RunConfig) -> str:
    """GPUs that are asked for are used."""
    gpus = {
        Scheduler.slurm: config.cluster.slurm.gpus_per_node,
        Scheduler.kuberay: config.cluster.kuberay.gpus_per_node,
    }
    if config.cluster.device is Device.auto and gpus[config.cluster.scheduler or Scheduler.slurm]:
        return "cuda"
    return planned_device(config)


def dry_script(config: RunConfig, overrides: list[str], device: str) -> str:
    """The script as it would be submitted; data need not be there yet, the run's id is then not the final one."""
    manifest, notes = manifest_if_any(config)
    plan_run(config, manifest, device=device)
    for note in notes if config.run.id is None else []:
        print(f"note: {note}, so the run's id in this script is not the final one", file=sys.stderr)
    folder = RunFolder(Path(config.run.root).absolute() / run_id_of(config, manifest))
    return render(config, spec_of(config, overrides, device, folder), device, folder)


def submit(config: RunConfig, overrides: list[str], device: str) -> int:
    manifest = read_data(config)
    folder = RunFolder(Path(config.run.root).absolute() / run_id_of(config, manifest))
    plan = plan_for(config, manifest, folder, device)
    if is_finished(folder, plan):
        print(f"run {plan.run_id} has already done its {plan.steps} steps; next: phalanx generate {folder.quoted}")
        return 0
    check_store(config, plan, folder)
    check_site(config, device, folder)
    job_id, expected = enqueue(config, spec_of(config, overrides, device, folder), device, folder)
    shown = shlex.quote(str(Path(config.run.root) / folder.run_id))
    bad = ", ".join(dict.fromkeys(entry.node for entry in read_bad_nodes(folder)))
    without = [("without", f"{bad}, found bad before; to use them again, edit {folder.bad_nodes}")] if bad else []
    for name, value in (
        ("run", folder.run_id),
        ("SLURM", re.sub(r"^Job \d+ ", "", expected)),
        *without,
        ("output", str(folder.job_output(job_id))),
        ("follow", f"phalanx status {shown}"),
        ("", f"phalanx logs {shown} --job -f"),
        ("end", f"phalanx cancel {shown}"),
    ):
        print(f"{name:<12}{value}")
    return 0


def enqueue(config: RunConfig, spec: JobSpec, device: str, folder: RunFolder) -> tuple[int, str]:
    """The job's id, which is printed, and what SLURM expects of it; of a new run nothing is left that is no job."""
    is_new = not folder.path.exists()
    with alone(folder) as lock:
        check_not_queued(folder)
        with _taken_back(folder, is_new, BaseException):
            expected = write(config, spec, device, folder)
        with _taken_back(folder, is_new, ConfigError, KeyboardInterrupt):  # not where SLURM may have taken it
            return hand_in(folder, lock), expected


@contextlib.contextmanager
def _taken_back(folder: RunFolder, is_new: bool, *errors: type[BaseException]) -> Iterator[None]:
    """Where one of `errors` is raised, nothing is left of a new folder for which there is no job."""
    try:
        yield
    except errors:
        if is_new and not folder.jobs.exists():
            shutil.rmtree(folder.path, ignore_errors=True)
        raise


def spec_of(config: RunConfig, overrides: list[str], device: str, folder: RunFolder) -> JobSpec:
    request = job_request(config.cluster, device)
    return job_spec(
        config, request, device=device, run_folder=str(folder.path), overrides=overrides, python=sys.executable
    )


def render(config: RunConfig, spec: JobSpec, device: str, folder: RunFolder) -> str:
    slurm = config.cluster.slurm
    return script_text(
        TEMPLATE.read_text(),
        directives=directives(
            config.cluster,
            job_request(config.cluster, device),
            name=folder.run_id,
            chdir=str(Path.cwd()),
            output=str(folder.job_output("%j")),
            exclude=excluded(slurm.exclude, read_bad_nodes(folder)),
        ),
        setup=slurm.setup,
        environment=slurm.environment,
        command=spec.command,
    )


def write(config: RunConfig, spec: JobSpec, device: str, folder: RunFolder) -> str:
    """The job's script and what it is to do. What SLURM expects of it; ConfigError where it would refuse it."""
    folder.slurm.mkdir(parents=True, exist_ok=True)
    folder.job_script.write_text(render(config, spec, device, folder))
    folder.job_spec.write_text(json.dumps(encode(spec), indent=2) + "\n")
    return commands.test_only(folder.job_script)


def hand_in(folder: RunFolder, lock: int) -> int:
    """The job's id, which is printed and written down. `lock`: the run's or sweep's. Errors: commands.submit."""
    with commands.uninterrupted():
        job_id = commands.submit(folder.job_script, lock=lock)
        append_submission(folder, Submission(job_id=job_id, time_s=time.time()))
        print(f"Submitted batch job {job_id}", flush=True)  # as sbatch says it: scripts look for that
    return job_id


def check_site(config: RunConfig, device: str, folder: RunFolder) -> None:
    """What this cluster can't give, and what of the run its nodes could not see."""
    cluster = config.cluster
    problems = request_problems(cluster.slurm, job_request(cluster, device), commands.partitions())
    places = {"run.root": config.run.root, "data.path": config.data.path, "checkpoint.url": config.checkpoint.url}
    problems += [problem for key, value in places.items() if value and (problem := not_shared(key, value))]
    slowest_s = slowest_save_s(read_events(folder.events))
    if slowest_s is not None and slowest_s > cluster.slurm.notice_s:
        problems.append(
            f"cluster.slurm.notice_s={cluster.slurm.notice_s} is shorter than a checkpoint of this run took "
            f"({slowest_s:.0f} s): it could not be saved at the time limit; use {2 * slowest_s:.0f} or more"
        )
    if problems:
        raise ConfigError(*problems)


@contextlib.contextmanager
def alone(folder: RunFolder) -> Iterator[int]:
    """Of two that submit a run at once the second is refused, with ConfigError: it would queue a second job.

    The lock's descriptor.
    """
    folder.slurm.mkdir(parents=True, exist_ok=True)
    try:
        with holding.held(folder.slurm / "submit.lock") as lock:
            yield lock
    except holding.HeldError as holder:
        raise ConfigError(
            f"{folder.run_id} is being submitted already ({holder}); follow it with phalanx status {folder.quoted}"
        ) from None


def check_not_queued(folder: RunFolder) -> None:
    """`folder` of a run, or of a sweep that is one job."""
    _, view = newest_job(folder) or ("", None)
    if view is not None and not view.state.is_end:
        raise ConfigError(
            f"{folder.run_id} is already job {view.job_id}, which is {view.state}; follow it with phalanx status "
            f"{folder.quoted}, or end it with phalanx cancel {folder.quoted}"
        )
