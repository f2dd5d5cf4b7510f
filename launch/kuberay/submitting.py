"""`phalanx submit` for Kubernetes: the run as a RayJob, printed or created. Imports neither torch nor ray."""

import shlex
from importlib.metadata import version

import yaml

from launch.compose import CONFIG_DIR_OPTIONS
from launch.kuberay import kubectl
from launch.kuberay.manifest import SHM_BESIDE_SNAPSHOTS_BYTES, JobFacts, rayjob
from launch.kuberay.request import pod_request, profile_problems, shortage
from launch.plan import manifest_if_any
from orchestrator.config import RunConfig
from orchestrator.control.snapshotmemory import snapshot_memory
from orchestrator.errors import ConfigError
from orchestrator.fleet.surroundings import RAY_SETTINGS
from orchestrator.placement import planned_placement
from orchestrator.plan import plan_run


def submit(config: RunConfig, overrides: list[str], device: str, *, is_dry_run: bool) -> int:
    """Print the manifest, or create the job. Raises ConfigError, with nothing created, for all that can be known."""
    text = manifest_text(config, overrides, device)
    if is_dry_run:
        print(text, end="")
        return 0
    name = str(config.run.id)
    said = kubectl.create(text, name)
    namespace = config.cluster.kuberay.namespace
    place = f" -n {namespace}" if namespace else ""
    head = f"-l ray.io/originated-from-cr-name={name},ray.io/node-type=head"
    print(said)
    for word, value in (
        ("run", name),
        ("follow", f"kubectl get rayjob {name}{place} --watch"),
        ("", f"kubectl get pods{place} {head}"),
        ("", f"kubectl exec{place} HEAD_POD -- phalanx status {shlex.quote(f'{config.run.root}/{name}')}"),
        ("end", f"kubectl delete rayjob {name}{place}"),
    ):
        print(f"{word:<12}{value}")
    return 0


def manifest_text(config: RunConfig, overrides: list[str], device: str) -> str:
    """The RayJob as YAML. Data that only the pods see is not looked at."""
    words, has_config_dir = pod_words(overrides, config.cluster.kuberay.config_dir)
    problems = profile_problems(config, device, has_config_dir=has_config_dir)
    if problems:
        raise ConfigError(*problems)
    manifest, _ = manifest_if_any(config)
    plan = plan_run(config, manifest, device=device)
    placement = planned_placement(config.cluster, device)
    shm_bytes = snapshot_memory(config, plan, placement).snapshot_bytes + SHM_BESIDE_SNAPSHOTS_BYTES
    if problem := shortage(config.cluster, shm_bytes):
        raise ConfigError(problem)
    job = JobFacts(
        run_id=plan.run_id,
        words=[config.cluster.kuberay.python, "-P", "-m", "launch.cli", "train", *words],
        request=pod_request(config.cluster, device),
        shm_bytes=shm_bytes,
        ray_version=version("ray"),
        ray_settings=RAY_SETTINGS,
    )
    return str(yaml.safe_dump(rayjob(config.cluster.kuberay, job), sort_keys=False, allow_unicode=True, width=110))


def pod_words(overrides: list[str], config_dir: str | None) -> tuple[list[str], bool]:
    """What `phalanx train` is typed with in the pod, and whether a folder of this machine was among it."""
    local = [word for word in overrides if word.partition("=")[0] in CONFIG_DIR_OPTIONS]
    words = [word for word in overrides if word not in local]
    if local and config_dir is not None:
        words = [f"--config-dir={config_dir}", *words]
    return words, bool(local)
