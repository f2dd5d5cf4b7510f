"""What a job knows of itself: job.json in the run folder, written by `submit`, read by the job. Plan half."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from launch.slurm.request import JobRequest
from orchestrator.codec import encode
from orchestrator.config import RunConfig
from orchestrator.slurm_config import ContainerConfig, ContainerRuntime, PreflightConfig, SlurmRequeue

SUBMITTED_AS = "PHALANX_SUBMITTED_AS"
"""Variable by which a job tells its driver the command that a person would type to go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckSettings:
    """What the preflight asks of each node."""

    device: str
    """cpu or cuda."""
    gpus: int
    """That the node was given."""
    seen: list[str]
    """Paths that every node has to see."""
    written: list[str]
    """Folders that every node writes to."""
    interface: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    run_folder: str
    """Absolute."""
    overrides: list[str]
    """What `phalanx submit`, or `sweep`, was typed with, and what it does in the job is."""
    request: JobRequest
    start_timeout_s: float
    notice_s: int
    requeue: SlurmRequeue
    network_interface: str | None
    python: str
    """For Ray and training: in the container, where there is one."""
    host_python: str
    """Outside of any container: srun and scontrol are there."""
    container: ContainerConfig
    preflight: PreflightConfig
    check: CheckSettings
    exclude: str | None
    """As configured; a requeued job leaves out the bad nodes besides."""
    verb: str = "train"
    """What the job does on its nodes: train, or sweep, whose trials share them."""

    @property
    def is_sweep(self) -> bool:
        return self.verb == "sweep"

    @property
    def command(self) -> list[str]:
        """What the batch script becomes."""
        return [self.host_python, "-P", "-m", "launch.job.batch", self.run_folder]

    @property
    def submitted_as(self) -> str:
        """What a person types to go on."""
        words = ["sweep", "--one-job"] if self.is_sweep else ["submit"]
        return shlex.join(["phalanx", *words, *self.overrides])


def job_spec(
    config: RunConfig, request: JobRequest, *, device: str, run_folder: str, overrides: list[str], python: str
) -> JobSpec:
    """`device`: cpu or cuda; `python`: the interpreter that submits."""
    slurm = config.cluster.slurm
    in_container = slurm.container.runtime is not ContainerRuntime.none
    return JobSpec(
        run_folder=run_folder,
        overrides=overrides,
        request=request,
        start_timeout_s=config.cluster.start_timeout_s,
        notice_s=slurm.notice_s,
        requeue=slurm.requeue,
        network_interface=config.cluster.network_interface,
        python=slurm.python or ("python3" if in_container else python),
        container=slurm.container,
        host_python=python if in_container else slurm.python or python,
        preflight=slurm.preflight,
        check=_check_settings(config, request, device, run_folder),
        exclude=slurm.exclude,
    )


def _check_settings(config: RunConfig, request: JobRequest, device: str, run_folder: str) -> CheckSettings:
    """Paths as the nodes read them: relative ones are below the folder in which the job was submitted."""
    data, disk = config.data.path, config.checkpoint.local_dir
    return CheckSettings(
        device=device,
        gpus=request.gpus_per_node,
        seen=[run_folder, *([data] if data is not None and "://" not in data else [])],
        written=[run_folder, *([disk] if disk is not None else [])],
        interface=config.cluster.network_interface,
    )


def node_words(spec: JobSpec, hosts: Sequence[str] | None = None) -> list[str]:
    """`srun ...` that starts the node program once on each node, at the job's full size; on `hosts` alone where some
    are unfit."""
    interface = [spec.network_interface] if spec.network_interface else []
    return _on_nodes(spec, ["launch.job.node", *interface], hosts)


def check_words(spec: JobSpec) -> list[str]:
    """`srun ...` that checks each node, before anything is started there."""
    return _on_nodes(spec, ["launch.job.checknode", json.dumps(encode(spec.check))], None)


def _on_nodes(spec: JobSpec, module: list[str], hosts: Sequence[str] | None) -> list[str]:
    request, count = spec.request, spec.request.all_nodes if hosts is None else len(hosts)
    sizes = [f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"]
    sizes.append(f"--cpus-per-task={request.cpus_per_node}")
    if hosts is not None and count < request.all_nodes:
        sizes.append(f"--nodelist={','.join(hosts)}")
    # A node that dies takes only itself along; --input=all is how the token reaches every node.
    stays = ["--no-kill", "--kill-on-bad-exit=0", "--input=all", "--overlap", "--export=ALL"]
    program = [spec.python, "-P", "-m", *module]
    return ["srun", *sizes, *stays, *_pyxis(spec.container), *_apptainer(spec.container), *program]


def driver_words(spec: JobSpec, hosts: Sequence[str], batch_host: str) -> list[str]:
    """`phalanx train ...` on the first of `hosts`, with fewer workers where these have room for fewer; `phalanx sweep
    ...`, whose trials then wait for each other.

    On the batch host as a process of the job; elsewhere, and for Pyxis, as a step.
    """
    pyxis = _pyxis(spec.container)
    is_step = bool(pyxis) or hosts[0] != batch_host
    program = ["launch.job.driver", spec.verb] if is_step else ["launch.cli", spec.verb]
    driver = [spec.python, "-P", "-m", *program, *spec.overrides]
    if spec.is_sweep:
        driver.append("cluster.scheduler=null")  # it is in its job already
    elif len(hosts) < spec.request.nodes:
        driver.append(f"cluster.num_workers={len(hosts) * spec.request.workers_per_node}")
    step = ["srun", "--nodes=1", "--ntasks=1", f"--nodelist={hosts[0]}", "--overlap", "--input=none", "--export=ALL"]
    return [*([*step, *pyxis] if is_step else []), *_apptainer(spec.container), *driver]


def _pyxis(container: ContainerConfig) -> list[str]:
    if container.runtime is not ContainerRuntime.pyxis or container.image is None:
        return []
    mounts = [f"--container-mounts={','.join(map(_mount, container.mounts))}"] if container.mounts else []
    return [f"--container-image={container.image}", *mounts, *container.arguments]


def _apptainer(container: ContainerConfig) -> list[str]:
    if container.runtime is not ContainerRuntime.apptainer or container.image is None:
        return []
    mounts = [f"--bind={_mount(mount)}" for mount in container.mounts]
    return ["apptainer", "exec", *mounts, *container.arguments, container.image]


def _mount(mount: str) -> str:
    return mount if ":" in mount else f"{mount}:{mount}"
