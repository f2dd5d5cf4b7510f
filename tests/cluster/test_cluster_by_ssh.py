"""`phalanx cluster up|down|status` on hosts with a real sshd each: all come up or none, and only ours are ended."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster.submitting import WORDS, left_on, prepare_data, wait_until

from launch.virtual.cluster import VirtualCluster
from orchestrator.observe.metrics import surviving_rows

pytestmark = pytest.mark.cluster
SSHD = "/usr/sbin/sshd"


@dataclass
class Hosts:
    """The nodes of a virtual cluster; the first two have an sshd. Everything is typed on the first."""

    cluster: VirtualCluster
    ssh_config: Path

    @property
    def first(self) -> str:
        return self.cluster.nodes[0]

    def phalanx(self, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "launch.cli", *words]
        return self.cluster.run(self.first, *command, env=variables, check=False)

    def up(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.phalanx("cluster", "up", *words, "--cpus", "2", "--ssh-config", str(self.ssh_config))

    def states(self, name: str) -> list[str]:
        (row,) = json.loads(self.phalanx("cluster", "status", "--name", name, "--json").stdout)
        return [host["state"] for host in row["hosts"]]

    def record(self, name: str) -> Path:
        return self.cluster.shared / "home/.phalanx/clusters" / name


@pytest.fixture(scope="module")
def hosts(slurm: VirtualCluster) -> Iterator[Hosts]:
    if not os.access(SSHD, os.X_OK) and os.environ.get("PHALANX_REQUIRE_CLUSTER") != "1":
        pytest.skip(f"{SSHD} is not there: apt-get install openssh-server")
    folder = slurm.shared / "ssh"
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "sshd_config").write_text(
        f"Port 22\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\n"
        f"PasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n"
        f"SetEnv PYTHONPATH={os.environ.get('PYTHONPATH', '')}\n"
    )
    (folder / "config").write_text(
        f"Host *\n  User root\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
        f"  UserKnownHostsFile {folder}/known\n  LogLevel ERROR\n"
    )
    daemons = []
    for node in slurm.nodes[:2]:
        slurm.run(node, "mkdir", "-p", "/run/sshd")
        daemons.append(slurm.start(node, SSHD, "-D", "-f", str(folder / "sshd_config")))
    yield Hosts(slurm, folder / "config")
    for node in slurm.nodes[:2]:
        slurm.run(node, "sh", "-c", "kill $(cat /proc/[0-9]*/stat | awk '$2 == \"(sshd)\" {print $1}')", check=False)
    for daemon in daemons:
        daemon.wait()


def assert_nothing_left(hosts: Hosts) -> None:
    for node in hosts.cluster.nodes:
        assert left_on(hosts.cluster, node) == []


def test_a_host_that_does_not_answer_is_named_and_nothing_is_left(hosts: Hosts) -> None:
    first, _, deaf = hosts.cluster.nodes
    wait_until(
        "sshd", lambda: hosts.cluster.run(first, "sh", "-c", "ss -ltn | grep -q :22", check=False).returncode == 0
    )
    done = hosts.up(first, deaf)
    assert done.returncode == 1
    assert f"{deaf} did not start Ray" in done.stderr
    assert f"{deaf}: ssh: connect to host {deaf} port 22: Connection refused" in done.stderr
    assert not hosts.record("default").exists()
    assert_nothing_left(hosts)


def test_two_clusters_side_by_side(hosts: Hosts) -> None:
    """Trained on; the program of one host is killed; each `down` ends its own cluster and nothing else."""
    data = prepare_data(hosts.cluster)
    first, second, _ = hosts.cluster.nodes
    for name in ("one", "two"):
        up = hosts.up(first, second, "--name", name)
        assert up.returncode == 0, up.stdout + up.stderr
        assert hosts.states(name) == ["up", "up"]
    again = hosts.up(first, "--name", "one")
    assert again.returncode == 2
    assert again.stderr.startswith("cluster one is there already")

    token = hosts.record("two") / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    for node in (first, second):
        assert token.read_text() not in hosts.cluster.run(node, "ps", "-eww", "-o", "args").stdout

    record = json.loads((hosts.record("one") / "cluster.json").read_text())
    holder = record["started"][second]["pid"]
    hosts.cluster.run(second, "kill", f"-{signal.SIGKILL.value}", str(holder))
    wait_until("its end", lambda: hosts.states("one") == ["up", "gone"])
    down = hosts.phalanx("cluster", "down", "--name", "one")
    assert (down.returncode, down.stdout) == (0, f"cluster one has ended: {first}, {second}\n"), down.stderr
    assert hosts.phalanx("cluster", "down", "--name", "one").stdout == "no cluster called one is up\n"
    assert hosts.states("two") == ["up", "up"]

    address = json.loads((hosts.record("two") / "cluster.json").read_text())["address"]
    words = [word for word in WORDS if not word.startswith(("cluster.slurm", "cluster=slurm"))]
    root = hosts.cluster.shared / "runs"
    places = [f"data.path={data}", f"run.root={root}", "run.id=by-ssh", f"cluster.address={address}"]
    trained = hosts.phalanx(
        "train", *words, *places, "cluster.workers_per_node=1", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token)
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    devices = next(line for line in trained.stdout.splitlines() if line.startswith("devices"))
    assert "2 x cpu" in devices and first in devices and second in devices
    assert len(surviving_rows(root / "by-ssh/metrics.jsonl")) == 40

    assert hosts.phalanx("cluster", "down", "--name", "two").returncode == 0
    assert hosts.phalanx("cluster", "status").stdout.startswith("no cluster is up")
    assert_nothing_left(hosts)
