"""The preflight of a job: one short step on all its nodes, and who of them is unfit to train on."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from launch.job.checking import Checking
from launch.job.nodestep import NodeStep, job_environment
from launch.slurm.jobspec import JobSpec, check_words
from orchestrator.doctor.verdict import rate_words, unfit, warnings

QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
"""Else torch tells of every address that it has no name."""
Wait = Callable[[Sequence[Any], float], bool]
"""Waits for one of the sources, so many seconds at most; False where SLURM wants the nodes back."""


def unfit_nodes(spec: JobSpec, hosts: Sequence[str], wait: Wait, say: Callable[[str], None]) -> dict[str, str] | None:
    """Node -> why it is unfit; None where SLURM wants the nodes back. What is worth knowing is told to `say`."""
    started_s = time.time()
    checking = Checking(hosts, spec.preflight.timeout_s, started_s)
    with NodeStep(check_words(spec), job_environment() | QUIET) as nodes:
        while not checking.is_complete:
            if not wait([nodes.reader], checking.left_s(time.time())):
                return None
            for message in nodes.reader.read():
                checking.hear(message, time.time())
            for order in checking.next_orders(time.time(), has_ended=nodes.has_ended):
                nodes.tell(order)
    checks = [checking.checks[host] for host in hosts if host in checking.checks]
    found = unfit(hosts, checking.checks, checking.silent, spec.preflight.min_rate)
    summary = f"preflight: {len(hosts) - len(found)} of {len(hosts)} nodes are fit, {rate_words(checks)}"
    say(f"{summary.removesuffix(', ')} (took {time.time() - started_s:.0f} s)")
    for warning in warnings(checks):
        say(f"preflight: {warning}")
    return found
