"""What goes wrong in a simulated run, and when: drawn from one seed. Plan half.

The mix is that of Llama 3 405B's pre-training on 16,384 H100 (arXiv 2407.21783, table 5): 419 unexpected
interruptions in 54 days, one in about three hours; 30.1 % GPU, 17.2 % HBM3 memory, 8.4 % network, the rest host and
software.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

REPORTED_GPUS = 16_384
REPORTED_INTERVAL_S = 3 * 3600.0


class Fault(StrEnum):
    gpu = "gpu"
    """A rank fails with a CUDA error, or stands still; one node in three is given back."""
    memory = "memory"
    """A rank is killed by a signal."""
    network = "network"
    """Some ranks' collectives fail, or a node can't be reached any more."""
    host = "host"
    """A node is gone."""
    software = "software"
    """A rank raises, leaves too early, or hangs."""
    two_nodes = "two_nodes"
    """A node and the one that holds its copies."""
    in_recovery = "in_recovery"
    """A rank or a node dies while the next recovery goes on."""
    in_leaving = "in_leaving"
    """A notice, and while the run saves and leaves a rank or a node dies, or a second notice comes."""
    damaged_snapshot = "damaged_snapshot"
    """A rank dies, and its snapshot does not match its checksum."""
    bad_numbers = "bad_numbers"
    """A step's loss is NaN, or replicas are found to differ since some steps."""
    disk_full = "disk_full"
    store_outage = "store_outage"
    """The store does not answer for a while."""
    torn_write = "torn_write"
    """A file of the newest checkpoint loses its end, and the driver dies."""
    clock_jump = "clock_jump"
    """Somebody sets the clock of the driver's machine, forward or back."""
    driver_death = "driver_death"
    """SIGKILL; the same command is typed again."""
    duplicate = "duplicate"
    """The scheduler starts the run a second time while the first driver lives."""
    preemption = "preemption"
    """A notice, and the same command again."""
    wandb_outage = "wandb_outage"
    slow = "slow"
    """A loader or a switch holds all ranks up for a minute; they move."""


REPORTED = {Fault.gpu: 0.301, Fault.memory: 0.172, Fault.network: 0.084, Fault.host: 0.22, Fault.software: 0.223}
"""Share of each; host and software in equal parts of the rest."""
UNINJECTED = tuple(fault for fault in Fault if fault not in REPORTED)
"""What nobody injects."""


@dataclass(frozen=True, slots=True)
class Injection:
    at_s: float
    fault: Fault


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """How one schedule is drawn."""

    steps: int
    hours: float
    """In which faults come; the run goes on until it has done its steps."""
    interval_s: float
    """Mean time between the faults of the reported mix."""
    uninjected: int
    """So many at most of those that nobody injects."""
    kinds: tuple[Fault, ...] = UNINJECTED
    """Of which these are drawn."""


def reported_interval_s(gpus: int) -> float:
    """Mean time between interruptions of a job on `gpus`, which fail independently of each other."""
    return REPORTED_INTERVAL_S * REPORTED_GPUS / gpus


def draw(scenario: Scenario, rng: np.random.Generator) -> list[Injection]:
    """By time: a Poisson process of the reported mix, and some others at any time."""
    length_s = scenario.hours * 3600
    number = int(rng.poisson(length_s / scenario.interval_s))
    kinds = list(REPORTED)
    chosen = rng.choice(len(kinds), size=number, p=np.array(list(REPORTED.values())))
    found = [
        Injection(float(t), kinds[index]) for t, index in zip(rng.uniform(0, length_s, number), chosen, strict=True)
    ]
    others = int(rng.integers(0, scenario.uninjected + 1))
    found += [
        Injection(float(rng.uniform(0, length_s)), scenario.kinds[int(rng.integers(len(scenario.kinds)))])
        for _ in range(others)
    ]
    return sorted(found, key=lambda injection: injection.at_s)
