"""What a job knows of itself: job.json in the run folder, written by `submit`, read by the job. Plan half."""

import shlex
from dataclasses import dataclass

from launch.slurm.request import JobRequest
from orchestrator.config import RunConfig
from orchestrator.slurm_config import ContainerConfig, ContainerRuntime, SlurmRequeue

SUBMITTED_AS = "PHALANX_SUBMITTED_AS"
"""Variable by which a job tells its driver the command that a person would type to go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    run_folder: str
    """Absolute."""
    overrides: list[str]
    """What `phalanx submit` was typed with, and `phalanx train` is."""
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

    @property
    def command(self) -> list[str]:
        """What the batch script becomes."""
        return [self.host_python, "-P", "-m", "launch.slurm.job", self.run_folder]

    @property
    def submitted_as(self) -> str:
        """What a person types to go on."""
        return shlex.join(["phalanx", "submit", *self.overrides])


def job_spec(
    config: RunConfig, request: JobRequest, *, run_folder: str, overrides: list[str], python: str
) -> JobSpec:
    """`python`: the interpreter that submits."""
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
    )


def node_words(spec: JobSpec) -> list[str]:
    """`srun ...` that starts the node program once on each node, at the job's full size."""
    request = spec.request
    sizes = [f"--nodes={request.all_nodes}", f"--ntasks={request.all_nodes}", "--ntasks-per-node=1"]
    sizes.append(f"--cpus-per-task={request.cpus_per_node}")
    # A node that dies takes only itself along; --input=all is how the token reaches every node.
    stays = ["--no-kill", "--kill-on-bad-exit=0", "--input=all", "--overlap", "--export=ALL"]
    program = [spec.python, "-P", "-m", "launch.slurm.node"]
    if spec.network_interface:
        program.append(spec.network_interface)
    return ["srun", *sizes, *stays, *_pyxis(spec.container), *_apptainer(spec.container), *program]


def driver_words(spec: JobSpec, host: str) -> list[str]:
    """`phalanx train ...` on the batch host; only Pyxis needs srun for that."""
    train = [spec.python, "-P", "-m", "launch.cli", "train", *spec.overrides]
    pyxis = _pyxis(spec.container)
    step = ["srun", "--nodes=1", "--ntasks=1", f"--nodelist={host}", "--overlap", "--input=none", "--export=ALL"]
    return [*([*step, *pyxis] if pyxis else []), *_apptainer(spec.container), *train]


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
