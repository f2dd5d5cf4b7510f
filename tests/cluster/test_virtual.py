"""The virtual cluster itself: separate hosts, real SLURM, faults, and nothing left at the end."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster.jobs import output, sbatch, wait_for
from cluster.leftovers import leftovers
from cluster.submitting import wait_until

from launch.virtual import cgroups
from launch.virtual.booting import VirtualClusterError
from launch.virtual.cluster import VirtualCluster, end, end_orphans, names
from launch.virtual.spec import VirtualSpec
from orchestrator.errors import ConfigError

pytestmark = pytest.mark.cluster
NewCluster = Callable[..., VirtualCluster]
ROOT = Path(__file__).resolve().parents[2]


def is_reached(cluster: VirtualCluster, node: str, *, by: str) -> bool:
    """Whether a connection to the node's slurmd comes about in two seconds."""
    knock = "import socket, sys; socket.create_connection((sys.argv[1], 6818), timeout=2)"
    return cluster.run(by, sys.executable, "-c", knock, node, check=False).returncode == 0


def reach(cluster: VirtualCluster, node: str, *, by: str) -> None:
    """Again and again: for a second after a cut the kernel may still say that there is no way."""
    wait_until(f"a connection to {node}", lambda: is_reached(cluster, node, by=by))


def connect_s(cluster: VirtualCluster, node: str, *, by: str) -> float:
    knock = (
        "import socket, sys, time; began = time.monotonic(); "
        "socket.create_connection((sys.argv[1], 6818)); print(time.monotonic() - began)"
    )
    return float(cluster.run(by, sys.executable, "-c", knock, node).stdout)


def digest_sent(cluster: VirtualCluster, node: str, *, by: str) -> str:
    """SHA-256 of the MiB that arrives at `node` over one connection."""
    listen = (
        "import hashlib, socket; server = socket.create_server(('', 0)); "
        "print(server.getsockname()[1], flush=True); peer, _ = server.accept(); "
        "print(hashlib.sha256(peer.makefile('rb').read()).hexdigest())"
    )
    send = (
        "import socket, sys; peer = socket.create_connection((sys.argv[1], int(sys.argv[2]))); "
        "peer.sendall(bytes(range(256)) * 4096); peer.close()"
    )
    listener = cluster.start(node, sys.executable, "-c", listen, stdout=subprocess.PIPE)
    assert listener.stdout is not None
    with listener, listener.stdout:
        cluster.run(by, sys.executable, "-c", send, node, listener.stdout.readline().strip())
        return str(listener.stdout.readline().strip())


def bring_up_and_be_killed(name: str, *, owner: str) -> None:
    """By a process of its own, which SIGKILL ends; `owner`: the owner's process id, as that process writes it."""
    script = (
        "import os, signal; from launch.virtual.cluster import *; from launch.virtual.owning import owner_of; "
        f"VirtualCluster.up(VirtualSpec(name={name!r}, nodes=1, owner=owner_of({owner}))); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL


class TestHosts:
    def test_a_job_runs_on_every_node_with_gpus_of_its_own(self, slurm: VirtualCluster) -> None:
        job = sbatch(
            slurm, "--nodes=3", "--gpus-per-node=2", script='srun bash -c "hostname; echo $CUDA_VISIBLE_DEVICES"'
        )
        assert wait_for(slurm, job)["JobState"] == "COMPLETED"
        assert sorted(output(slurm, job).splitlines()) == ["0,1"] * 3 + [*slurm.nodes]

    def test_the_exit_code_of_a_job_is_its_own(self, slurm: VirtualCluster) -> None:
        job = sbatch(slurm, script="exit 75")
        ended = wait_for(slurm, job)
        assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "75:0")

    def test_tmp_shm_processes_and_addresses_are_each_nodes_own(self, slurm: VirtualCluster) -> None:
        one, two, _ = slurm.nodes
        slurm.run(one, "touch", "/tmp/mine", "/dev/shm/mine", "/run/mine", str(slurm.shared / "ours"))
        for path in ("/tmp/mine", "/dev/shm/mine", "/run/mine"):
            assert slurm.run(two, "test", "-e", path, check=False).returncode == 1, path
        assert slurm.run(two, "test", "-e", str(slurm.shared / "ours")).returncode == 0
        assert not Path("/tmp/mine").exists()
        assert slurm.run(one, "hostname").stdout.strip() == one
        assert slurm.spec.address(one) in slurm.run(one, "hostname", "--all-ip-addresses").stdout
        seen = slurm.run(two, "ps", "-e", "-o", "args").stdout
        assert f"slurmd -N {two}" in seen
        assert f"slurmd -N {one}" not in seen

    def test_nothing_outside_can_be_reached(self, slurm: VirtualCluster) -> None:
        assert slurm.run(slurm.nodes[0], "ip", "route", "show", "default").stdout == ""

    def test_home_is_shared_and_not_the_callers(self, slurm: VirtualCluster) -> None:
        homes = {slurm.run(node, "sh", "-c", "echo ~root $HOME").stdout for node in slurm.nodes}
        assert homes == {f"{slurm.shared}/home {slurm.shared}/home\n"}

    def test_a_node_runs_this_python_and_this_code(self, slurm: VirtualCluster) -> None:
        words = (sys.executable, "-P", "-c", "import launch; print(launch.__file__)")
        done = slurm.run(slurm.nodes[0], *words, env={"PYTHONPATH": str(ROOT)})
        assert Path(done.stdout.strip()) == ROOT / "launch/__init__.py"

    def test_failing_words_carry_what_was_said(self, slurm: VirtualCluster) -> None:
        with pytest.raises(VirtualClusterError, match=r"exited with 3: no such luck"):
            slurm.run(slurm.head, "sh", "-c", "echo no such luck >&2; exit 3")

    def test_an_unknown_node_is_met_with_the_known_ones(self, slurm: VirtualCluster) -> None:
        with pytest.raises(ConfigError, match=f"known: {slurm.head}, "):
            slurm.run(f"{slurm.name}9", "true")

    @pytest.mark.skipif(not cgroups.are_usable(), reason="SLURM has no cgroups of version 1 here")
    def test_slurm_ends_what_a_job_leaves_behind_and_what_takes_too_much(self, slurm: VirtualCluster) -> None:
        job = sbatch(slurm, "--nodelist", slurm.nodes[0], script="setsid sleep 4242 & disown; exit 0")
        assert wait_for(slurm, job)["JobState"] == "COMPLETED"
        greedy = f'srun {sys.executable} -c "bytearray(300_000_000)"'
        job = sbatch(slurm, "--nodelist", slurm.nodes[0], "--mem=100M", script=greedy)
        assert wait_for(slurm, job)["JobState"] in ("OUT_OF_MEMORY", "FAILED")
        assert "Out Of Memory" in output(slurm, job)
        assert "sleep 4242" not in slurm.run(slurm.nodes[0], "ps", "-e", "-o", "args").stdout


class TestFaults:
    def test_power_loss_takes_all_and_a_boot_brings_the_node_back(self, new_cluster: NewCluster) -> None:
        cluster = new_cluster(nodes=2)
        head, one, two = cluster.head, *cluster.nodes
        cluster.run(two, "touch", "/tmp/on_disk", "/dev/shm/in_memory")
        sleeper = cluster.start(two, "sleep", "infinity")
        cluster.crash(two)
        assert sleeper.wait() == -signal.SIGKILL
        assert cluster.state(two) == "off, isolated"
        assert not is_reached(cluster, two, by=one)
        with pytest.raises(ConfigError, match=f"{two} is off"):
            cluster.run(two, "true")
        cluster.boot(two)
        cluster.wait_until_idle()
        assert cluster.state(two) == "on"
        assert cluster.run(two, "ls", "/dev/shm").stdout == ""
        assert "on_disk" in cluster.run(two, "ls", "/tmp").stdout
        cluster.run(head, "srun", "--nodelist", two, "true")

    def test_an_isolated_node_is_silent_until_it_heals(self, new_cluster: NewCluster) -> None:
        cluster = new_cluster(nodes=2)
        one, two = cluster.nodes
        cluster.isolate(two)
        assert cluster.state(two) == "on, isolated"
        assert not is_reached(cluster, two, by=one)
        assert "UP" in cluster.run(two, "ip", "-br", "link", "show", "eth0").stdout
        cluster.heal(two)
        reach(cluster, two, by=one)

    def test_a_slow_cable_delays_and_loses_and_delivers_whole(self, new_cluster: NewCluster) -> None:
        cluster = new_cluster(nodes=2)
        one, two = cluster.nodes
        cluster.slow(two, delay_ms=50, loss=0.02)
        assert cluster.state(two) == "on, slow"
        assert connect_s(cluster, two, by=one) >= 0.1
        assert digest_sent(cluster, two, by=one) == hashlib.sha256(bytes(range(256)) * 4096).hexdigest()
        cluster.isolate(two)
        assert cluster.state(two) == "on, isolated"
        assert not is_reached(cluster, two, by=one)
        cluster.slow(two, delay_ms=1)
        reach(cluster, two, by=one)
        cluster.heal(two)
        assert cluster.state(two) == "on"
        reach(cluster, two, by=one)

    def test_a_frozen_node_computes_nothing_until_it_thaws(self, new_cluster: NewCluster) -> None:
        cluster = new_cluster(nodes=1)
        node = cluster.nodes[0]
        count = "i=0; while :; do i=$((i+1)); echo $i > counter; done"
        cluster.start(node, "bash", "-c", count)
        counter = cluster.shared / "counter"
        cluster.freeze(node)
        assert cluster.state(node) == "frozen"
        reach(cluster, node, by=cluster.head)
        states = subprocess.run(["ps", "-e", "-o", "stat=,args="], capture_output=True, text=True, check=True).stdout
        assert [line for line in states.splitlines() if count in line and not line.startswith("T")] == []
        frozen_at = counter.read_text() if counter.exists() else ""
        cluster.thaw(node)
        assert cluster.state(node) == "on"
        while not counter.exists() or counter.read_text() in ("", frozen_at):
            pass


class TestEnds:
    def test_down_leaves_nothing_and_touches_no_other_cluster(self, new_cluster: NewCluster) -> None:
        first, second = new_cluster(nodes=2), new_cluster(nodes=1)
        assert {first.name, second.name} <= set(names())
        first.run(first.head, "sbatch", "--nodes=2", "--wrap", "srun sleep infinity")
        first.start(first.nodes[0], "bash", "-c", "setsid sleep infinity & exec sleep infinity")
        first.crash(first.nodes[1])
        first.slow(first.nodes[0], delay_ms=1)
        first.freeze(first.nodes[0])
        assert leftovers(first.name) != []
        first.down()
        assert leftovers(first.name) == []
        second.run(second.head, "srun", "hostname")

    def test_what_is_up_outlives_the_tool_and_is_ended_by_name(
        self, can_be_virtual: None, unused_name: Callable[[], str]
    ) -> None:
        name = unused_name()
        try:
            bring_up_and_be_killed(name, owner=str(os.getpid()))
            assert VirtualCluster.find(name).run(f"{name}0", "srun", "hostname").stdout == f"{name}1\n"
            (Path("/var/tmp/phalanx-virtual") / name / "spec.json").unlink()
        finally:
            end(name)
        assert leftovers(name) == []

    def test_what_a_killed_owner_has_left_is_taken_down_and_nothing_else(
        self, new_cluster: NewCluster, unused_name: Callable[[], str]
    ) -> None:
        """As a test session that is killed leaves it."""
        name, ours = unused_name(), new_cluster(nodes=1)
        try:
            bring_up_and_be_killed(name, owner="os.getpid()")
            assert ours.name not in end_orphans()
            assert leftovers(name) == []
            ours.run(ours.head, "srun", "true")
        finally:
            end(name)

    def test_a_name_is_taken_once(self, slurm: VirtualCluster) -> None:
        with pytest.raises(ConfigError, match=f"called {slurm.name} is there already"):
            VirtualCluster.up(VirtualSpec(name=slurm.name, nodes=1))
        slurm.run(slurm.head, "srun", "true")

    def test_a_cluster_that_does_not_come_up_says_why_and_is_gone(
        self, can_be_virtual: None, unused_name: Callable[[], str]
    ) -> None:
        name = unused_name()
        with pytest.raises(VirtualClusterError, match=r"did not boot[\s\S]*NoSuchKey"):
            VirtualCluster.up(VirtualSpec(name=name, nodes=1, slurm_lines=("NoSuchKey=1",)))
        assert leftovers(name) == []

    def test_without_cgroups_slurm_works_as_well(self, new_cluster: NewCluster) -> None:
        cluster = new_cluster(nodes=1, has_cgroups=False)
        assert cluster.run(cluster.head, "srun", "hostname").stdout == f"{cluster.nodes[0]}\n"
        assert list(Path("/sys/fs/cgroup").glob(f"*/slurm_{cluster.name}*")) == []
