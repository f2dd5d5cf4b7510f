"""A sweep as one SLURM job: its trials share the job's nodes, as they share any Ray.

The job is that of `phalanx submit`, with `phalanx sweep` in it instead of `phalanx train`.
"""

from collections.abc import Sequence
from dataclasses import replace

from launch.slurm.request import job_request, profile_problems
from launch.submit import check_not_queued, check_site, hand_in, spec_of, wanted_device, write
from launch.sweep_words import SweepWords
from orchestrator.config import ClusterConfig, RunConfig
from orchestrator.errors import ConfigError
from orchestrator.runfolder import RunFolder
from orchestrator.spec import NodeFacts
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.packing import gang_of


def check(read: SweepWords, base: RunConfig) -> None:
    """Raises ConfigError, with nothing submitted, for all that keeps this sweep from being one job here."""
    device = wanted_device(base)
    problems = profile_problems(base.cluster, device)
    if read.settings.max_concurrent is None:
        problems.append(
            "sweep.max_concurrent is not set, so the nodes of the job are not known; use sweep.max_concurrent=4 for "
            f"{4 * base.cluster.num_workers} workers at a time"
        )
    if problems:
        raise ConfigError(*problems)
    request = job_request(whole_cluster(read, base), device)
    nodes = [
        NodeFacts(name=f"node-{number}", cpus=request.cpus_per_node, gpus=request.gpus_per_node)
        for number in range(request.nodes)
    ]
    for parameters in read.trials():
        gang_of(read.compose(parameters), nodes)


def whole_cluster(read: SweepWords, base: RunConfig) -> ClusterConfig:
    """Of `sweep.max_concurrent` trials at a time; one is enough to begin with."""
    cluster = base.cluster
    return replace(
        cluster,
        num_workers=cluster.num_workers * (read.settings.max_concurrent or 1),
        workers_per_node=cluster.workers_per_node or cluster.num_workers,
        min_workers=cluster.num_workers,
    )


def submit(folder: SweepFolder, read: SweepWords, base: RunConfig, words: Sequence[str], lock: int) -> int:
    """Submit it, with the sweep's `lock` held; the exit code."""
    config, device = replace(base, cluster=whole_cluster(read, base)), wanted_device(base)
    run = RunFolder(folder.path.absolute())
    check_site(config, device, run)
    check_not_queued(run)
    spec = replace(spec_of(config, list(words), device, run), verb="sweep")
    write(config, spec, device, run)
    hand_in(run, lock)
    for name, value in (
        ("sweep", folder.sweep_id),
        ("nodes", f"{spec.request.all_nodes}, for {read.settings.max_concurrent} trials at a time"),
        ("follow", f"phalanx status {folder.quoted}"),
        ("", f"phalanx logs {folder.quoted} --job -f"),
        ("end", f"phalanx cancel {folder.quoted}"),
    ):
        print(f"{name:<12}{value}")
    return 0
