"""Virtual SLURM clusters for tests: real daemons, hosts in namespaces. Whatever a test brings up ends with it.

Skips with the reason where there can be none, unless PHALANX_REQUIRE_CLUSTER=1 (CI), where that is a failure.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from launch.virtual.cluster import VirtualCluster, end
from launch.virtual.machine import missing_requirement
from launch.virtual.spec import VirtualSpec

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def unused_name() -> Callable[[], str]:
    """Makes names of clusters that no other test process uses: letters only, at most 8."""

    def make() -> str:
        number, letters = os.getpid() * 32 + next(_NUMBERS) % 32, ""
        while number:
            number, digit = divmod(number, 26)
            letters += chr(ord("a") + digit)
        return f"t{letters}"

    return make


@pytest.fixture(scope="session")
def can_be_virtual() -> None:
    reason = missing_requirement()
    if reason and os.environ.get("PHALANX_REQUIRE_CLUSTER") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture
def new_cluster(can_be_virtual: None, unused_name: Callable[[], str]) -> Iterator[Callable[..., VirtualCluster]]:
    """`new_cluster(nodes=3, gpus=2, ...)`: the fields of VirtualSpec; for tests that break nodes."""
    made: list[str] = []

    def make(**fields: Any) -> VirtualCluster:
        name = unused_name()
        made.append(name)
        return VirtualCluster.up(VirtualSpec(name=name, **fields))

    yield make
    for name in made:
        end(name)


@pytest.fixture(scope="module")
def slurm(can_be_virtual: None, unused_name: Callable[[], str]) -> Iterator[VirtualCluster]:
    """Three nodes with two made-up GPUs each, for all tests of a module: leave it as it was found."""
    cluster = VirtualCluster.up(VirtualSpec(name=unused_name(), nodes=3, gpus=2))
    yield cluster
    cluster.down()
