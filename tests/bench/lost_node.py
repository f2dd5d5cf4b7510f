"""What a dead, a cut-off and a slow node cost a SLURM job: python -m tests.bench.lost_node (root: virtual hosts)"""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from launch.virtual.cluster import VirtualCluster, end
from launch.virtual.machine import missing_requirement
from launch.virtual.owning import owner_of
from launch.virtual.spec import VirtualSpec
from orchestrator.observe.metrics import read_last_rows, read_rows
from tests.bench.harness import Bench, Comparison, Figure, Measured, main
from tests.cluster.submitting import SubmittedRun, phalanx, prepare_data, wait_until

NAME = "bench"
FIRST_STEP = 20
STEPS = 30
"""Of each speed, for the slow cable."""
DELAY_MS, LOSS = 20.0, 0.01
WORDS = ["train.steps=1000000", "optim.schedule_steps=40", "cluster.slurm.spare_nodes=1", "cluster.cpus_per_worker=2"]
LEASE_S = 6

ABOUT = f"""A job of two workers on two of three virtual hosts (SLURM's real daemons, network namespaces, two cores in
all), the third one spare; `fault.lease_timeout_s={LEASE_S}`. A node that does not have the driver is switched off, or
its frames vanish: time until the run calls it lost, and until the first step on the spare node has been done. And its
cable is made slow: {DELAY_MS:g} ms and {LOSS:.0%} loss each way, step by step against the {STEPS} steps before.
Nothing is lost then; a preflight (`cluster.slurm.preflight`) finds such a node by its all-reduce before the start."""


@contextmanager
def running(run_id: str) -> Iterator[tuple[SubmittedRun, str]]:
    """A job that trains, and the node of it that is to suffer."""
    try:
        site = VirtualCluster.up(VirtualSpec(name=NAME, nodes=3, cpus=2, owner=owner_of(os.getpid())))
        words = [*WORDS, f"fault.lease_timeout_s={LEASE_S}"]
        run = SubmittedRun(site, prepare_data(site), run_id, *words)
        run.submit()
        run.wait_for_step(FIRST_STEP)
        yield run, sorted(hosts_of(run) - {run.fields()["BatchHost"]})[0]
        phalanx(site, "cancel", str(run.folder.path), "--now")
    finally:
        end(NAME)


def hosts_of(run: SubmittedRun) -> set[str]:
    logs = [run.folder.rank_log(1, rank).read_text() for rank in (0, 1)]
    return {found[1] for log in logs if (found := re.search(r" on (\S+): attempt 1, pid", log))}


def lose(fault: Callable[[VirtualCluster, str], None]) -> tuple[float, float]:
    """Seconds until the node is called lost, and until a step has been done without it."""
    with running("lost") as (run, node):
        fault(run.cluster, node)
        began_s = time.time()
        wait_until("a step elsewhere", lambda: run.newest_attempt() > 1 and newest_attempts_step_s(run) is not None)
        (lost,) = run.events("node_lost")
        ended_s = newest_attempts_step_s(run)
        assert ended_s is not None
        return lost["t"] - began_s, ended_s - began_s


def newest_attempts_step_s(run: SubmittedRun) -> float | None:
    """When the newest attempt's first step had been done, in unix seconds. (Not of its first row: that may be of the
    step before the loss, told again because the lost agent took its report along.)"""
    newest = run.newest_attempt()
    return next((event["t"] for event in run.events("first_step") if event["attempt"] == newest), None)


def slow_down() -> tuple[list[float], list[float]]:
    """Milliseconds of steps behind the slow cable, and of those before."""
    with running("slow") as (run, node):
        before = newest_step(run)
        run.wait_for_step(before + STEPS)
        run.cluster.slow(node, delay_ms=DELAY_MS, loss=LOSS)
        slowed = newest_step(run)
        run.wait_for_step(slowed + 1 + STEPS)
        assert run.events("node_lost", "rank_died") == []
        step_ms = {row.step: row.step_s * 1e3 for row in read_rows(run.folder.metrics)}
        return (
            [step_ms[step] for step in range(slowed + 2, slowed + 2 + STEPS - 1)],
            [step_ms[step] for step in range(before + 1, slowed)],
        )


def newest_step(run: SubmittedRun) -> int:
    return read_last_rows(run.folder.metrics, 1)[0].step


def measure(options: argparse.Namespace) -> Measured:
    if problem := missing_requirement():
        raise SystemExit(problem)
    figures = []
    for words, fault in (("switched off", VirtualCluster.crash), ("cut off", VirtualCluster.isolate)):
        times = [lose(fault) for _ in range(options.pairs)]
        figures += [
            Figure(name=f"{words}: called lost", unit="s", samples=[lost_s for lost_s, _ in times]),
            Figure(name=f"{words}: a step on the spare node", unit="s", samples=[step_s for _, step_s in times]),
        ]
    slow = [slow_down() for _ in range(options.pairs)]
    steps = Comparison(
        name="a step behind the slow cable / before",
        unit="ms",
        goal="-",
        ours=[behind for behind, _ in slow],
        peer=[before for _, before in slow],
    )
    return Measured(settings={"pairs": options.pairs}, comparisons=[steps], figures=figures)


BENCH = Bench(
    name="lost_node",
    title="What a dead, a cut-off and a slow node cost",
    about=ABOUT,
    pairs=2,
    measure=measure,
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
