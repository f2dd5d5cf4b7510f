"""A SLURM cluster of several hosts on this machine: real daemons, each node in namespaces of its own. Needs root."""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from launch.suggest import not_known
from launch.virtual import cgroups, network, processes
from launch.virtual.booting import ROOT, VirtualClusterError, boot, last_lines, write_files
from launch.virtual.machine import fitted, login_environment, missing_requirement
from launch.virtual.node_init import SPEC_FILE
from launch.virtual.owning import is_gone
from launch.virtual.spec import VirtualSpec, spec_problems
from orchestrator.codec import decode
from orchestrator.errors import ConfigError

_IDLE_TIMEOUT_S = 120.0
_POLL_S = 0.1


class VirtualCluster:
    """A cluster that is up. All it is can be found by its name: another process may hold it, end it, look at it.

    `shared` is one folder on every node and on the machine; HOME is in it. `/tmp`, `/run`, `/dev/shm`, `/var/log`,
    the host name and the network are each node's own; the rest of the machine is the same for all.
    """

    def __init__(self, spec: VirtualSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.head = spec.head
        self.nodes = spec.compute_nodes
        self.folder = ROOT / spec.name
        self.shared = self.folder / "shared"

    @classmethod
    def up(cls, spec: VirtualSpec) -> "VirtualCluster":
        """Bring it up; returns when every node is idle. Raises ConfigError where it can't be or is up already."""
        problems = [*spec_problems(spec), *filter(None, [missing_requirement()])]
        if problems:
            raise ConfigError(*problems)
        if spec.name in network.all_names():
            raise ConfigError(
                f"a virtual cluster called {spec.name} is there already; give this one another --name, or end that "
                f"one: phalanx cluster virtual down --name {spec.name}"
            )
        network.create_switch(spec.name)
        try:
            cluster = cls(fitted(spec))
            write_files(cluster.spec)
            for node in spec.all_nodes:
                network.add_node(spec.name, node, spec.address(node))
            boot(cluster.spec, spec.all_nodes)
            cluster.wait_until_idle()
        except BaseException:
            end(spec.name)
            raise
        return cluster

    @classmethod
    def find(cls, name: str) -> "VirtualCluster":
        """The cluster of that name. Raises ConfigError where none is up."""
        try:
            return cls(decode(VirtualSpec, json.loads((ROOT / name / SPEC_FILE).read_text())))
        except (OSError, ValueError, TypeError) as error:
            known = sorted(path.parent.name for path in ROOT.glob(f"*/{SPEC_FILE}"))
            if known:
                raise ConfigError(not_known(f"virtual cluster {name}", name, known)) from error
            raise ConfigError("no virtual cluster is up; to make one: phalanx cluster virtual up 3") from error

    def down(self) -> None:
        """End every process and remove every namespace, cgroup and file."""
        end(self.name)

    def command(self, node: str, words: Sequence[str], *, cwd: Path | None = None) -> list[str]:
        """The words that run `words` inside a node, in `cwd` (`shared`); to be run with `environment()`.

        Raises ConfigError for a node that is not known or is off.
        """
        namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid")
        return ["nsenter", f"--target={self._on(node)}", *namespaces, f"--wd={cwd or self.shared}", "--", *words]

    def environment(self) -> dict[str, str]:
        return login_environment(self.shared / "home")

    def run(
        self,
        node: str,
        *words: str,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end, output captured. Raises VirtualClusterError where `check` and it fails."""
        done = subprocess.run(
            self.command(node, words, cwd=cwd),
            env=self.environment() | dict(env or {}),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise VirtualClusterError(f"{' '.join(words)} on {node} exited with {done.returncode}: {said}")
        return done

    def start(
        self,
        node: str,
        *words: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: IO[Any] | int | None = None,
    ) -> subprocess.Popen[str]:
        """Start and go on; stderr goes with stdout. Killing what is returned leaves what runs in the node."""
        return subprocess.Popen(
            self.command(node, words, cwd=cwd),
            env=self.environment() | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def isolate(self, node: str) -> None:
        """Network partition: nothing gets through to the node or from it, and nobody is told."""
        network.unplug(self.name, self._known(node))

    def slow(self, node: str, *, delay_ms: float, loss: float = 0.0) -> None:
        """What the node sends and gets takes so much longer, each way; a share `loss` of its frames is lost."""
        network.slow_down(self.name, self._known(node), delay_ms=delay_ms, loss=loss)

    def heal(self, node: str) -> None:
        """After `isolate` and `slow`."""
        network.plug_in(self.name, self._known(node))

    def crash(self, node: str) -> None:
        """Power loss: the network is silent first, then every process is gone without a farewell."""
        self.isolate(node)
        first = self._first_process(node)
        if first is not None:
            _must_end([first])  # it ends last of the node
        cgroups.remove(node)

    def boot(self, node: str) -> None:
        """Power on after `crash`; returns when the node's daemons run. Nothing for a node that is on."""
        if self._first_process(node) is None:
            self.heal(node)
            boot(self.spec, [node])

    def freeze(self, node: str) -> None:
        """Every process hangs; the node's kernel still acknowledges what it gets."""
        processes.stop(self._on(node))

    def thaw(self, node: str) -> None:
        processes.resume(self._on(node))

    def state(self, node: str) -> str:
        """`on`, `off` or `frozen`; after it `, isolated` where the node is cut off, or `, slow`."""
        first = self._first_process(node)
        power = "off" if first is None else "frozen" if processes.is_stopped(first) else "on"
        if network.is_plugged_in(self.name, node):
            return power
        return f"{power}, slow" if network.is_slow(self.name, node) else f"{power}, isolated"

    def slurm_states(self) -> dict[str, str]:
        """Node -> SLURM's word for it (`idle`, `allocated`, `down*`); empty where slurmctld does not answer."""
        shown = self.run(self.head, "sinfo", "--noheader", "--Node", "--partition=main", "-o", "%N %T", check=False)
        return dict(line.split() for line in shown.stdout.splitlines())

    def wait_until_idle(self, nodes: Iterable[str] | None = None) -> None:
        """Until SLURM says so of each (all). Raises VirtualClusterError after two minutes."""
        wanted, deadline_s = set(self.nodes if nodes is None else nodes), time.monotonic() + _IDLE_TIMEOUT_S
        while True:
            states = self.slurm_states()
            if all(states.get(node) == "idle" for node in wanted):
                return
            if time.monotonic() > deadline_s:
                raise VirtualClusterError(f"nodes did not become idle: {states}{last_lines(self.folder)}")
            time.sleep(_POLL_S)

    def _known(self, node: str) -> str:
        if node not in self.spec.all_nodes:
            raise ConfigError(not_known(f"node {node}", node, self.spec.all_nodes))
        return node

    def _first_process(self, node: str) -> int | None:
        return processes.first_process(network.pids(self.name, self._known(node)))

    def _on(self, node: str) -> int:
        first = self._first_process(node)
        if first is None:
            raise ConfigError(f"{node} is off; to switch it on: phalanx cluster virtual boot {node}")
        return first


def end(name: str) -> None:
    """End the cluster of that name, or what is left of it; nothing where nothing is left."""
    for node in (*network.all_names().get(name, ()), network.SWITCH):
        while pids := network.pids(name, node):  # again: some were forked meanwhile
            _must_end(pids)
    network.remove(name)
    left = cgroups.remove(f"{name}[0-9]*")
    if left:
        raise VirtualClusterError(f"cgroups are still in use: {', '.join(map(str, left))}; repeat the command")
    shutil.rmtree(ROOT / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # others' clusters are in it
        ROOT.rmdir()


def end_orphans() -> list[str]:
    """End the clusters whose owner is gone; their names."""
    orphans = []
    for name in names():
        with contextlib.suppress(ConfigError):  # it has no record: nobody knows whose it is
            owner = VirtualCluster.find(name).spec.owner
            orphans += [name] if owner is not None and is_gone(owner) else []
    for name in orphans:
        end(name)
    return orphans


def names() -> list[str]:
    """Every virtual cluster of this machine, also those of which only a part is left."""
    folders = {path.name for path in ROOT.iterdir()} if ROOT.is_dir() else set()
    return sorted({*network.all_names(), *folders})


def _must_end(pids: Sequence[int]) -> None:
    left = processes.kill(pids)
    if left:
        raise VirtualClusterError(f"processes {left} do not end though they were killed; see what they wait for")
