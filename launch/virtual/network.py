"""Network namespaces of virtual clusters: the only file that calls `ip`.

Each cluster is one namespace with a bridge (its switch) and one per node, joined by a veth pair. Nothing is added
to the machine's own namespace, so there is no way out, and none in. The names are the state: what is up is found
by `ip netns list`, also after the tool was killed.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil

from launch.virtual.spec import NETMASK_BITS
from orchestrator.errors import PhalanxError

PREFIX = "phalanx"
SWITCH = "switch"
NETNS_FOLDER = "/run/netns"
_NAME = re.compile(rf"{PREFIX}-(?P<cluster>[a-z]+)-(?P<node>[a-z]+[0-9]*)")


class NetworkError(PhalanxError):
    """`ip` refused; carries what it said."""


def namespace(cluster: str, node: str) -> str:
    """The network namespace of a node, or of `SWITCH`."""
    return f"{PREFIX}-{cluster}-{node}"


def create_switch(cluster: str) -> None:
    """Raises NetworkError where a cluster of this name exists: creating the name is exclusive."""
    switch = namespace(cluster, SWITCH)
    _ip("netns", "add", switch)
    _ip("-n", switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0", "forward_delay", "0")
    _ip("-n", switch, "link", "set", "br0", "up")


def add_node(cluster: str, node: str, address: str) -> None:
    """A namespace with eth0 at `address`, plugged into the switch."""
    inside, switch = namespace(cluster, node), namespace(cluster, SWITCH)
    _ip("netns", "add", inside)
    _ip("-n", switch, "link", "add", _port(node), "type", "veth", "peer", "name", "eth0", "netns", inside)
    _ip("-n", inside, "addr", "add", f"{address}/{NETMASK_BITS}", "dev", "eth0")
    _ip("-n", inside, "link", "set", "lo", "up")
    _ip("-n", inside, "link", "set", "eth0", "up")
    plug_in(cluster, node)


def plug_in(cluster: str, node: str) -> None:
    """Also where its cable was slow."""
    _end_relay(cluster, node)
    _ip("-n", namespace(cluster, SWITCH), "link", "set", _port(node), "master", "br0", "up")


def unplug(cluster: str, node: str) -> None:
    """Frames of the node vanish silently; its own interface stays up and notices nothing."""
    _end_relay(cluster, node)
    _ip("-n", namespace(cluster, SWITCH), "link", "set", _port(node), "nomaster")


def slow_down(cluster: str, node: str, *, delay_ms: float, loss: float) -> None:
    """Frames of the node take `delay_ms` longer each way and a share `loss` of them is lost, until `plug_in`."""
    unplug(cluster, node)
    switch, tap = namespace(cluster, SWITCH), _tap(node)
    program = [sys.executable, "-P", str(Path(__file__).with_name("relay.py"))]
    _ip("netns", "exec", switch, *program, _port(node), tap, str(delay_ms), str(loss))
    _ip("-n", switch, "link", "set", tap, "master", "br0", "up")


def is_slow(cluster: str, node: str) -> bool:
    return bool(_relays(cluster, node))


def is_plugged_in(cluster: str, node: str) -> bool:
    shown = _ip("-j", "-n", namespace(cluster, SWITCH), "link", "show", _port(node))
    return "master" in json.loads(shown)[0]


def all_names() -> dict[str, list[str]]:
    """Cluster -> its nodes with a namespace, without the switch, by number; what `ip` lists now."""
    found: dict[str, list[str]] = {}
    for line in _ip("netns", "list").splitlines():
        match = _NAME.match(line)
        if match:
            nodes = found.setdefault(match["cluster"], [])
            nodes += [match["node"]] if match["node"] != SWITCH else []
    return {
        cluster: sorted(nodes, key=lambda node: int(node.removeprefix(cluster))) for cluster, nodes in found.items()
    }


def pids(cluster: str, node: str) -> list[int]:
    """Every process in the namespace, by its number on the machine; none where the namespace is gone."""
    try:
        return [int(pid) for pid in _ip("netns", "pids", namespace(cluster, node)).split()]
    except NetworkError:
        return []


def remove(cluster: str) -> None:
    """Delete every namespace of the cluster; those still used by a process end with it."""
    for node in (*all_names().get(cluster, ()), SWITCH):
        with contextlib.suppress(NetworkError):  # it was not made, or another `down` was faster
            _ip("netns", "del", namespace(cluster, node))


def refusal() -> str | None:
    """What `ip` says where namespaces can't be made here; None where they can."""
    probe = f"{PREFIX}-probe-{os.getpid()}"
    try:
        _ip("netns", "add", probe)
        _ip("netns", "del", probe)
    except NetworkError as error:
        return str(error)
    return None


def _relays(cluster: str, node: str) -> list[psutil.Process]:
    """The processes that are the node's slow cable: one, or none."""
    found = []
    for pid in pids(cluster, SWITCH):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found += [process] if _tap(node) in process.cmdline() else []
    return found


def _end_relay(cluster: str, node: str) -> None:
    relays = _relays(cluster, node)
    for process in relays:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(relays)


def _tap(node: str) -> str:
    return f"t-{node}"


def _port(node: str) -> str:
    return f"p-{node}"


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetworkError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
