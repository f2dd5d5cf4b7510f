"""Jobs on nodes of which some are unfit: left out, written down, and not asked for again until somebody says so."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from cluster.submitting import SLOW, SubmittedRun, left_on, phalanx, prepare_data, wait_until

from launch.virtual.cluster import VirtualCluster
from orchestrator.control.badnodes import read_bad_nodes

pytestmark = pytest.mark.cluster
# On the virtual cluster all nodes share a few cores, so only a crushing difference says something.
CHECKED = [
    "cluster.slurm.preflight.enabled=true",
    "cluster.slurm.preflight.min_rate=0.1",
    "cluster.cpus_per_worker=2",
]


@pytest.fixture(scope="module")
def site(bring_up: Callable[..., AbstractContextManager[VirtualCluster]]) -> Iterator[VirtualCluster]:
    """Nodes with room for one worker each."""
    with bring_up(nodes=4, cpus=2) as cluster:
        yield cluster


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
    site.slow(node, delay_ms=20, loss=0.01)
    try:
        yield
    finally:
        site.heal(node)


def script(site: VirtualCluster, run: SubmittedRun) -> str:
    shown = phalanx(site, "submit", *run.words, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_a_job_starts_on_the_good_nodes_and_remembers_the_bad_ones(site: VirtualCluster, data: Path) -> None:
    """The first node is bad, too: Ray and the driver begin on another one, which also hears the notice. There are
    no other nodes for the next job: it gets the same ones, and leaves the bad ones out again."""
    full, first, slow, last = site.nodes
    run = SubmittedRun(site, data, "spared", *CHECKED, "cluster.slurm.spare_nodes=2", *SLOW)
    with no_shared_memory(site, full), slow_link(site, slow):
        run.submit()
        run.wait_for_step(5)
        run.notify()
        wait_until("the restart", lambda: run.fields()["Restarts"] == "1")
        run.wait_for_step(run.events("requeued")[0]["step"] + 1, attempt=2)
        assert phalanx(site, "cancel", str(run.folder.path)).returncode == 0
        ended = run.wait_for_state()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "1"), run.output()
    bad = {entry.node: entry.reason for entry in read_bad_nodes(run.folder)}
    assert set(bad) == {full, slow}
    assert bad[full].startswith("shared memory: ")
    assert bad[slow].startswith("an all-reduce at ")
    assert run.output().count("preflight: 2 of 4 nodes are fit, matrix product ") == 2
    assert f"the next job may get {full}, {slow} again: SLURM refuses the job" in run.output()
    assert "saved step " in run.output()
    logs = "".join(run.folder.rank_log(attempt, rank).read_text() for attempt in (1, 2) for rank in (0, 1))
    assert {node for node in site.nodes if f" on {node}: attempt " in logs} == {first, last}
    assert [event["resume_step"] for event in run.events("attempt_started")] == [0, run.events("requeued")[0]["step"]]
    assert [left_on(site, node) for node in site.nodes] == [[]] * 4

    assert f"#SBATCH --exclude={full},{slow}\n" in script(site, run)
    text = run.folder.bad_nodes.read_text()
    run.folder.bad_nodes.write_text("".join(line for line in text.splitlines(True) if not line.startswith(full)))
    assert f"#SBATCH --exclude={slow}\n" in script(site, run)


def test_a_job_without_enough_good_nodes_goes_back_for_others(site: VirtualCluster, data: Path) -> None:
    first, *others, last = site.nodes
    run = SubmittedRun(site, data, "moved", *CHECKED, f"cluster.slurm.exclude={last}")
    with no_shared_memory(site, first):
        run.submit()
        ended = run.wait_for_state()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), run.output()
    assert ended["ExcNodeList"] == f"{last},{first}"
    assert f"too few nodes are fit: requeued (restart 1), without {last},{first}" in run.output()
    assert [entry.node for entry in read_bad_nodes(run.folder)] == [first]
    assert {row.world_size for row in run.rows().values()} == {2}
    assert all(any(f" on {node}: " in run.folder.rank_log(1, rank).read_text() for rank in (0, 1)) for node in others)


def test_fewer_workers_start_where_that_is_enough(site: VirtualCluster, data: Path) -> None:
    first, *_, last = site.nodes
    words = [*CHECKED, "cluster.min_workers=1", f"cluster.slurm.exclude={site.name}[2,3]"]
    run = SubmittedRun(site, data, "fewer", *words)
    with no_shared_memory(site, first):
        run.submit()
        ended = run.wait_for_state()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "0"), run.output()
    assert {row.world_size for row in run.rows().values()} == {1}
    assert f" on {last}: attempt 1" in run.folder.rank_log(1, 0).read_text()


def test_a_job_for_which_there_are_no_other_nodes_ends_with_words(site: VirtualCluster, data: Path) -> None:
    """It would wait in the queue for ever."""
    first, *_, last = site.nodes
    run = SubmittedRun(site, data, "stuck", *CHECKED, f"cluster.slurm.exclude={site.name}[2,3]")
    with no_shared_memory(site, first):
        run.submit()
        ended = run.wait_for_state()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "0"), run.output()
    assert "SLURM refuses the job: " in run.output()
    assert "too few nodes are fit: leaving\n" in run.output()
    assert run.events() == []
    assert [left_on(site, node) for node in (first, last)] == [[], []]
