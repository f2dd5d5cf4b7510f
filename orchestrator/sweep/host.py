"""The Ray that a sweep's trials share, held by a process of its own: the sweep outlives the loss of its Ray.

python -m orchestrator.sweep.host CLUSTER_JSON MIN_CPUS: starts Ray here or joins one, prints a line of JSON with
what a trial needs to join, then a line whenever the nodes change. Ends with its stdin, and with Ray.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil  # type: ignore[import-untyped]

from orchestrator.codec import decode, encode
from orchestrator.config import ClusterConfig
from orchestrator.errors import EXIT_FAILED, PhalanxError
from orchestrator.fleet.cluster import RayCluster
from orchestrator.fleet.surroundings import knock
from orchestrator.leaving import leave_with
from orchestrator.processes import named
from orchestrator.spec import NodeFacts

LOOK_S = 0.5
NODES_EVERY_S = 5.0
KNOCKS = 3
"""A joined Ray that refuses so many connections in a row is gone."""
RAY_PROCESSES = {"gcs_server", "raylet"}
TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
CLOSE_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RayFacts:
    """What the host says of its Ray."""

    is_ours: bool
    address: str
    environment: dict[str, str]
    """What a trial's process needs beside ours to join."""
    nodes: tuple[NodeFacts, ...]


class RayHost:
    """The host's process, as the sweep's driver knows it. `close` ends it and a Ray that it started."""

    def __init__(self, config: ClusterConfig, min_cpus: int, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.facts: RayFacts | None = None
        """None until Ray answers."""
        self._buffer = b""
        self._log = log
        with log.open("ab") as errors:
            self._log_start = errors.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.sweep.host", json.dumps(encode(config)), str(min_cpus)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is the sweep's to hand on
            )
        assert self._process.stdout is not None
        self._lines = self._process.stdout

    def wait(self, timeout_s: float) -> bool:
        """Wait for news at most so long and take them in; False where the host, and so its Ray, has ended."""
        if not select.select([self._lines], [], [], timeout_s)[0]:
            return True
        read = os.read(self._lines.fileno(), 1 << 16)
        *whole, self._buffer = (self._buffer + read).split(b"\n")
        for line in whole:
            self.facts = decode(RayFacts, json.loads(line))
        return bool(read)

    def last_words(self) -> str:
        """What the host printed last: why it ended."""
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with exit code {self._process.poll()}"

    def close(self) -> None:
        """Twice is harmless."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._lines.close()


def main(arguments: Sequence[str]) -> int:
    """Hold the cluster until stdin closes (0) or Ray is gone (1)."""
    config = decode(ClusterConfig, json.loads(arguments[0]))
    # What Ray prints here (a node has died, say) goes to the log: our output is what the sweep reads.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        with answers, RayCluster(config, int(arguments[1])) as cluster:
            return _hold(cluster, answers)
    except PhalanxError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code


def _hold(cluster: RayCluster, answers: TextIO) -> int:
    address = cluster.address()
    watched = _ray_processes() if cluster.is_ours else []
    environment = _environment(address, os.environ, is_ours=cluster.is_ours)
    told: RayFacts | None = None
    refusals, looked_s = 0, float("-inf")
    while not select.select([sys.stdin], [], [], LOOK_S)[0]:
        if any(not _is_alive(process) for process in watched):
            print("a process of Ray's own has ended", file=sys.stderr, flush=True)
            os._exit(EXIT_FAILED)  # Ray's orderly end would wait for the dead
        if time.monotonic() - looked_s < NODES_EVERY_S:
            continue
        looked_s = time.monotonic()
        refusals = 0 if _answers(address) else refusals + 1
        if refusals >= KNOCKS:
            print(f"Ray at {address} does not answer any more", file=sys.stderr, flush=True)
            os._exit(EXIT_FAILED)
        if refusals:
            continue
        facts = RayFacts(
            is_ours=cluster.is_ours, address=address, environment=environment, nodes=tuple(cluster.nodes())
        )
        if facts != told:
            print(json.dumps(encode(facts)), file=answers, flush=True)
            told = facts
    return 0


def _environment(address: str, environment: Mapping[str, str], *, is_ours: bool) -> dict[str, str]:
    if not is_ours:
        return {}  # the trials join as this process did
    return {"RAY_ADDRESS": address} | {name: environment[name] for name in TOKEN_VARIABLES if name in environment}


def _ray_processes() -> list[psutil.Process]:
    return [child for child, _ in named(psutil.Process().children(recursive=True), RAY_PROCESSES)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _answers(address: str) -> bool:
    try:
        knock(address)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    leave_with(lambda: main(sys.argv[1:]))
