"""Jobs on nodes of which some are unfit: left out, written down, and not asked for again until somebody says so."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cluster.submitting import SubmittedRun, left_on, phalanx, prepare_data

from launch.slurm.badnodes import read_bad_nodes
from launch.virtual.cluster import VirtualCluster, end
from launch.virtual.spec import VirtualSpec

pytestmark = pytest.mark.cluster
# On the virtual cluster all nodes share a few cores, so only a crushing difference says something.
CHECKED = [
    "cluster.slurm.preflight.enabled=true",
    "cluster.slurm.preflight.min_rate=0.1",
    "cluster.cpus_per_worker=2",
]


@pytest.fixture(scope="module")
def site(can_be_virtual: None, unused_name: Callable[[], str]) -> Iterator[VirtualCluster]:
    """Nodes with room for one worker each."""
    name = unused_name()
    cluster = VirtualCluster.up(VirtualSpec(name=name, nodes=4, cpus=2))
    try:
        yield cluster
    finally:
        end(name)


@pytest.fixture(scope="module")
def data(site: VirtualCluster) -> Path:
    return prepare_data(site)


@contextmanager
def no_shared_memory(site: VirtualCluster, node: str) -> Iterator[None]:
    site.run(node, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm")
    try:
        yield
    finally:
        site.run(node, "umount", "/dev/shm")


@contextmanager
def slow_link(site: VirtualCluster, node: str) -> Iterator[None]:
    """What the node sends goes at 12 MB a second."""
    shape = ("root", "tbf", "rate", "100mbit", "burst", "256k", "latency", "100ms")
    site.run(node, "tc", "qdisc", "add", "dev", "eth0", *shape)
    try:
        yield
    finally:
        site.run(node, "tc", "qdisc", "del", "dev", "eth0", "root")


def script(site: VirtualCluster, run: SubmittedRun) -> str:
    shown = phalanx(site, "submit", *run.words, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_a_job_starts_on_the_good_nodes_and_remembers_the_bad_ones(site: VirtualCluster, data: Path) -> None:
    first, full, slow, last = site.nodes
    run = SubmittedRun(site, data, "spared", *CHECKED, "cluster.slurm.spare_nodes=2")
    with no_shared_memory(site, full), slow_link(site, slow):
        run.submit()
        ended = run.wait_for_state()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "0"), run.output()
    bad = {entry.node: entry.reason for entry in read_bad_nodes(run.folder)}
    assert set(bad) == {full, slow}
    assert bad[full].startswith("shared memory: ")
    assert bad[slow].startswith("an all-reduce at ")
    assert "preflight: 2 of 4 nodes are fit, matrix product " in run.output()
    logs = "".join(run.folder.rank_log(1, rank).read_text() for rank in (0, 1))
    assert {node for node in site.nodes if f" on {node}: attempt 1" in logs} == {first, last}
    assert [left_on(site, node) for node in site.nodes] == [[]] * 4

    assert f"#SBATCH --exclude={full},{slow}\n" in script(site, run)
    text = run.folder.bad_nodes.read_text()
    run.folder.bad_nodes.write_text("".join(line for line in text.splitlines(True) if not line.startswith(full)))
    assert f"#SBATCH --exclude={slow}\n" in script(site, run)


def test_a_job_without_enough_good_nodes_goes_back_for_others(site: VirtualCluster, data: Path) -> None:
    """First its leading node is bad; then one of the two that it gets, and one worker is enough."""
    first, second, third, _ = site.nodes
    words = [*CHECKED, "cluster.min_workers=1", f"cluster.slurm.exclude={site.nodes[3]}"]
    run = SubmittedRun(site, data, "moved", *words)
    with ExitStack() as broken:
        for node in (first, third):
            broken.enter_context(no_shared_memory(site, node))
        run.submit()
        ended = run.wait_for_state()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), run.output()
    assert ended["ExcNodeList"] == f"{site.nodes[3]},{first}"
    assert f"too few nodes are fit: requeued (restart 1), without {site.nodes[3]},{first}" in run.output()
    assert [entry.node for entry in read_bad_nodes(run.folder)] == [first, third]
    assert {row.world_size for row in run.rows().values()} == {1}
    assert f" on {second}: attempt 1" in run.folder.rank_log(1, 0).read_text()


def test_a_job_for_which_there_are_no_other_nodes_ends_with_words(site: VirtualCluster, data: Path) -> None:
    """It would wait in the queue for ever."""
    first, *_, last = site.nodes
    run = SubmittedRun(site, data, "stuck", *CHECKED, f"cluster.slurm.exclude={site.name}[2,3]")
    with no_shared_memory(site, first):
        run.submit()
        ended = run.wait_for_state()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "0"), run.output()
    assert "SLURM refuses the job: " in run.output()
    assert f"too few nodes are fit: leaving, without {site.name}[2,3],{first}" in run.output()
    assert run.events() == []
    assert [left_on(site, node) for node in (first, last)] == [[], []]
