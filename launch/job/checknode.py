"""One node's part in a job's preflight: how it is, how fast it computes, how fast it sums with another node.

`srun` runs it once per node, as `python -m launch.job.checknode '{"device": ..., ...}'`. Lines of JSON on stdout:
    row {"row", "level", "found", "cure"}           each finding
    checked {"address", "port", "flops_per_s", "gpus"}      after the last of them
    failed {"text"}                                 instead, where a device or the network fails at work; it ends
and the answers to what it hears on stdin:
    clock                                           -> clock {"time_s"}
    pair {"turn", "nodes", "address", "port"}       -> paired {"turn", "bytes_per_s"}, or with {"error"}
    end, or the end of input                        it ends
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from launch.job.lines import Message, line
from launch.job.node import own_address
from launch.slurm.jobspec import CheckSettings
from orchestrator.codec import decode, encode
from orchestrator.doctor import gpus, rates
from orchestrator.doctor.finding import Finding, Level
from orchestrator.doctor.machine import machine
from orchestrator.doctor.node import MAX_FOUND, NOT_SHARED, node_name
from orchestrator.fleet.surroundings import interface_of

Say = Callable[..., None]


def main() -> None:
    settings = decode(CheckSettings, json.loads(sys.argv[1]))
    name = node_name()

    def say(op: str, **fields: object) -> None:
        os.write(1, line({"op": op, "node": name, **fields}))

    try:
        store = look(settings, say)
    except (RuntimeError, OSError) as error:  # a broken GPU says so at its first work
        say("failed", text=first_line(error))
        return
    for order in orders():
        match order["op"]:
            case "clock":
                say("clock", time_s=time.time())
            case "pair" if name in order["nodes"]:
                rank, turn = order["nodes"].index(name), order["turn"]
                try:
                    met = store if rank == 0 else rates.store_of(order["address"], order["port"])
                    speed = rates.pair_bytes_per_s(met, rank, device=settings.device, turn=turn)
                    say("paired", turn=turn, bytes_per_s=speed)
                except RuntimeError as error:
                    say("paired", turn=turn, bytes_per_s=0.0, error=first_line(error))
            case "end":
                return


def look(settings: CheckSettings, say: Say) -> rates.Store:
    """All that this node finds by itself; where another one meets it afterwards. Raises RuntimeError or OSError where
    a device or the network fails at work."""

    def tell(findings: Iterable[Finding]) -> None:
        for finding in findings:
            say("row", **encode(replace(finding, found=finding.found[:MAX_FOUND])))

    tell([*machine(settings.written), *unseen(settings.seen)])
    products = rates.matrix_flops_per_s(settings.device)
    uuids = gpus.visible_gpus() if settings.device == "cuda" else []
    if settings.device == "cuda":  # after work: a GPU at rest is not throttled
        tell(gpus.gpu_findings(uuids, settings.gpus))
    address = own_address(settings.interface, None)
    if not address:
        raise OSError(f"cluster.network_interface={settings.interface} has no address here")
    interface = settings.interface or interface_of(address)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface else ():
        os.environ.setdefault(variable, str(interface))
    store = rates.own_store(address)
    say("checked", address=address, port=store.port, flops_per_s=min(products, default=None), gpus=uuids)
    return store


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:MAX_FOUND]


def unseen(paths: Sequence[str]) -> Iterator[Finding]:
    for path in paths:
        if not Path(path).exists():
            yield Finding("shared file system", Level.fail, f"{path} is not here", NOT_SHARED)


def orders() -> Iterator[Message]:
    for text in sys.stdin.buffer:
        yield json.loads(text)


if __name__ == "__main__":
    main()
