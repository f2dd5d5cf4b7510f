"""Virtual SLURM clusters for tests: real daemons, hosts in namespaces. Whatever a test brings up ends with it.

Skips with the reason where there can be none, unless PHALANX_REQUIRE_CLUSTER=1 (CI), where that is a failure.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from launch.virtual.cluster import VirtualCluster, end, end_orphans
from launch.virtual.machine import missing_requirement
from launch.virtual.owning import owner_of
from launch.virtual.spec import VirtualSpec

BringUp = Callable[..., AbstractContextManager[VirtualCluster]]
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
    end_orphans()  # of a session that was killed


@pytest.fixture(scope="session")
def bring_up(can_be_virtual: None, unused_name: Callable[[], str]) -> BringUp:
    """`with bring_up(nodes=3, gpus=2, ...) as cluster:`, with the fields of VirtualSpec."""

    @contextlib.contextmanager
    def up(**fields: Any) -> Iterator[VirtualCluster]:
        spec = VirtualSpec(name=unused_name(), owner=owner_of(os.getpid()), **fields)
        try:
            yield VirtualCluster.up(spec)
        finally:
            end(spec.name)

    return up


@pytest.fixture
def new_cluster(bring_up: BringUp) -> Iterator[Callable[..., VirtualCluster]]:
    """As `bring_up`, up to the end of the test: for tests that break nodes."""
    with contextlib.ExitStack() as stack:
        yield lambda **fields: stack.enter_context(bring_up(**fields))


@pytest.fixture(scope="module")
def slurm(bring_up: BringUp) -> Iterator[VirtualCluster]:
    """Three nodes with two made-up GPUs each, for all tests of a module: leave it as it was found."""
    with bring_up(nodes=3, gpus=2) as cluster:
        yield cluster
