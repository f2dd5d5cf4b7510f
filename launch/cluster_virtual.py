"""`phalanx cluster virtual`: a SLURM cluster of several hosts on this machine, to try job scripts and failures on."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from launch.cli_help import parser
from launch.cluster_status import Row, Words, print_clusters
from launch.virtual.cluster import VirtualCluster, end, end_orphans, names
from launch.virtual.machine import missing_requirement
from launch.virtual.owning import owner_of
from launch.virtual.spec import DEFAULT_NAME, VirtualSpec
from orchestrator.errors import ConfigError, PhalanxError
from orchestrator.observe.units import plural

_EXAMPLES = """  sudo phalanx cluster virtual up 3 --gpus 2
  sudo phalanx cluster virtual exec v0 sbatch --nodes=3 job.sh
  sudo phalanx cluster virtual exec v0 squeue
  sudo phalanx cluster virtual crash v2
  sudo phalanx cluster virtual boot v2
  sudo phalanx cluster virtual slow v2 --delay-ms 20 --loss 0.01
  sudo phalanx cluster virtual status
  sudo phalanx cluster virtual down

v0 is the head: jobs are submitted there. v1, v2, ... run them. Every node has its own address, /tmp, /dev/shm and
processes; the rest of this machine is shared, HOME too. Nothing outside of the cluster can be reached."""


class _Fault(NamedTuple):
    act: Callable[[VirtualCluster, str], None]
    summary: str


_ON_A_NODE = {
    "crash": _Fault(VirtualCluster.crash, "power loss: all processes of a node are gone"),
    "boot": _Fault(VirtualCluster.boot, "power on after a crash"),
    "isolate": _Fault(VirtualCluster.isolate, "cut a node off the network"),
    "heal": _Fault(VirtualCluster.heal, "connect it again, at full speed"),
    "freeze": _Fault(VirtualCluster.freeze, "a node hangs"),
    "thaw": _Fault(VirtualCluster.thaw, "it goes on"),
}


def run(argv: list[str]) -> int:
    """The verb; the exit code. Raises ConfigError where there can be no such cluster, or no such one is up."""
    options = _parser().parse_args(argv)
    problem = missing_requirement()
    if problem:
        raise ConfigError(problem)
    return int(options.act(options))


def _parser() -> argparse.ArgumentParser:
    verbs = ["up", "down", "status", "exec", *_ON_A_NODE, "slow"]
    parsing = parser(
        "cluster virtual",
        "A SLURM cluster of several hosts on this machine: real daemons, each node in namespaces of its own.",
        _EXAMPLES,
        "|".join(verbs) + " ...",
    )
    verb = parsing.add_subparsers(required=True, metavar="VERB")
    up = verb.add_parser("up", help="bring a cluster up; it stays until `down`")
    up.add_argument("nodes", type=int, help="how many nodes run jobs; the head comes on top")
    defaults = VirtualSpec()
    up.add_argument("--cpus", type=int, default=defaults.cpus, help="of a node, for SLURM (default: %(default)s)")
    up.add_argument("--memory-mib", type=int, default=defaults.memory_mib, help="as --cpus (default: %(default)s)")
    up.add_argument("--gpus", type=int, default=defaults.gpus, help="made-up ones of a node (default: %(default)s)")
    up.add_argument("--shm-mib", type=int, default=defaults.shm_mib, help="size of /dev/shm (default: %(default)s)")
    up.add_argument("--keep", action="append", default=[], metavar="DIR", help="a folder below /tmp that nodes see")
    up.add_argument("--owner", type=int, metavar="PID", help="once it is gone, the next `up` takes this cluster down")
    up.set_defaults(act=_up)
    down = verb.add_parser("down", help="end a cluster and remove all that is left of it")
    down.set_defaults(act=_down)
    for named in (up, down):
        named.add_argument("--name", default=DEFAULT_NAME, help="letters; begins the nodes' names (%(default)s)")
    status = verb.add_parser("status", help="what clusters there are, and their nodes")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(act=_status)
    execute = verb.add_parser("exec", help="run a command on a node, in the shared folder; its exit code is ours")
    execute.add_argument("node")
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    execute.set_defaults(act=_exec)
    for name, fault in _ON_A_NODE.items():
        on_node = verb.add_parser(name, help=fault.summary)
        on_node.add_argument("node")
        on_node.set_defaults(act=_fault, fault=fault)
    slow = verb.add_parser("slow", help="a slow, lossy cable to a node, until `heal`")
    slow.add_argument("node")
    slow.add_argument("--delay-ms", type=float, default=50.0, help="of each frame, each way (default: %(default)s)")
    slow.add_argument("--loss", type=float, default=0.0, help="share of frames, 0 to 1 (default: %(default)s)")
    slow.set_defaults(act=_slow)
    return parsing


def _up(options: argparse.Namespace) -> int:
    for name in end_orphans():
        print(f"took down {name}, whose owner is gone")
    cluster = VirtualCluster.up(
        VirtualSpec(
            name=options.name,
            nodes=options.nodes,
            cpus=options.cpus,
            memory_mib=options.memory_mib,
            gpus=options.gpus,
            shm_mib=options.shm_mib,
            keep=tuple(os.path.realpath(folder) for folder in options.keep),
            owner=None if options.owner is None else owner_of(options.owner),
        )
    )
    first, last = cluster.nodes[0], cluster.nodes[-1]
    called = first if first == last else f"{first} to {last}"
    print(
        f"{plural(options.nodes, 'node')} idle: {called}; the head is {cluster.head}\n"
        f"shared folder  {cluster.shared}\n"
        f"submit         phalanx cluster virtual exec {cluster.head} sbatch JOB.sh\n"
        f"end it         phalanx cluster virtual down --name {cluster.name}"
    )
    return 0


def _down(options: argparse.Namespace) -> int:
    if options.name not in names():
        print(f"no virtual cluster called {options.name} is there")
    end(options.name)
    return 0


def _status(options: argparse.Namespace) -> int:
    rows = [_row(name) for name in names()]
    nothing = "no virtual cluster is up; to make one: phalanx cluster virtual up 3"
    print_clusters(rows, _words, as_json=options.json, if_none=nothing)
    return 0


def _words(row: Row) -> Words:
    nodes = [(node["node"], node["address"], node["state"], node["slurm"] or "") for node in row["nodes"]]
    return f"{row['name']}: {row['problem'] or row['shared']}", nodes


def _row(name: str) -> Row:
    try:
        cluster = VirtualCluster.find(name)
        states = cluster.slurm_states() if cluster.state(cluster.head).startswith("on") else {}
        nodes = [
            {
                "node": node,
                "address": cluster.spec.address(node),
                "state": cluster.state(node),
                "slurm": states.get(node),
            }
            for node in cluster.spec.all_nodes
        ]
    except PhalanxError:
        left = f"only a part of it is left; to remove it: phalanx cluster virtual down --name {name}"
        return {"name": name, "problem": left, "shared": None, "nodes": []}
    return {"name": name, "problem": None, "shared": str(cluster.shared), "nodes": nodes}


def _exec(options: argparse.Namespace) -> int:
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    cluster = _cluster_of(options.node)
    command = cluster.command(options.node, words or ["bash"])
    sys.stdout.flush()
    os.execvpe(command[0], command, cluster.environment())  # signals and the exit code are the command's own


def _fault(options: argparse.Namespace) -> int:
    options.fault.act(_cluster_of(options.node), options.node)
    return 0


def _slow(options: argparse.Namespace) -> int:
    if options.delay_ms < 0 or not 0 <= options.loss <= 1:
        raise ConfigError(
            f"--delay-ms={options.delay_ms:g} --loss={options.loss:g} make no cable; use 0 or more, and 0 to 1"
        )
    _cluster_of(options.node).slow(options.node, delay_ms=options.delay_ms, loss=options.loss)
    return 0


def _cluster_of(node: str) -> VirtualCluster:
    """The cluster whose name the node's begins with."""
    return VirtualCluster.find(node.rstrip("0123456789"))
