"""Stores in one S3 bucket, each with faults of its own, and what is done there disturbed at each request in turn."""

import random
import secrets
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from s3_proxy import FAULTS, Plan, Proxy
from s3_server import BUCKET
from saving import random_state, save

from orchestrator.checkpoint.commit import newest_valid
from orchestrator.checkpoint.reader import CheckpointReader
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import logical_digest
from orchestrator.errors import CheckpointError, StoreError

SHAPES = {"w": (50, 8), "b": (3,)}
STATES = {step: random_state(SHAPES, seed=step) for step in (10, 20, 30)}
"""Step -> what is saved of it."""
SEED = 3
CASES_AT_ONCE = 16
BEYOND_THE_CLIENT = 25
"""Requests in a row that outlast the retries of the S3 client itself."""
Prepare, Act = Callable[[Store], None], Callable[[Store], None]


def digest_of(store: Store, step: int) -> str:
    return logical_digest(CheckpointReader.open(store.url_of(f"step_{step:08d}")))


def newest_step(store: Store) -> int | None:
    marker = newest_valid(store, None, lambda step, reason: pytest.fail(f"step {step} was rejected: {reason}"))
    return marker.step if marker else None


def saved(*steps: int) -> Prepare:
    def prepare(store: Store) -> None:
        for step in steps:
            save(store, step, STATES[step])

    return prepare


@dataclass(frozen=True)
class Case:
    """The `hits` requests from `first` on fail with `fault`."""

    fault: str
    first: int
    hits: int


class FaultyStore:
    """A store of its own in the bucket, whose requests are counted and failed apart from all others'."""

    def __init__(self, proxy: Proxy) -> None:
        self._folder, self._proxy = secrets.token_hex(6), proxy
        self.store = Store(f"s3://{BUCKET}/{self._folder}")
        self.calm()

    def calm(self) -> None:
        self._proxy.plans[self._folder] = Plan()

    def disturb(self, case: Case) -> None:
        self._proxy.plans[self._folder] = Plan(case.fault, case.first, case.hits)

    @property
    def num_requests(self) -> int:
        return len(self._proxy.plans[self._folder].seen)

    @property
    def was_hit(self) -> bool:
        return self._proxy.plans[self._folder].faulted > 0


def at_every_request(
    proxy: Proxy, count: int | None, *, prepare: Prepare, act: Act, check: Callable[[Store, bool], None]
) -> Counter[str]:
    """`act` with one fault, and with one that outlasts the client, from each of its requests on (or at `count` of
    them), each time in a store of its own after `prepare`; `check(store, has_worked)` sees what is left.

    `act` may only fail with CheckpointError. Cases wait for the client's retries most of the time: many run at once.
    """
    calm = FaultyStore(proxy)
    prepare(calm.store)
    calm.calm()
    act(calm.store)
    every = [
        Case(fault, first, hits)
        for fault in FAULTS
        for first in range(calm.num_requests)
        for hits in (1, BEYOND_THE_CLIENT)
    ]
    chosen = every if count is None else random.Random(SEED).sample(every, min(count, len(every)))

    def run(case: Case) -> str:
        faulty = FaultyStore(proxy)
        prepare(faulty.store)
        faulty.disturb(case)
        try:
            act(faulty.store)
            outcome = "worked"
        except CheckpointError as error:
            assert isinstance(error, StoreError) or "can't be committed" in str(error), (case, error)
            outcome = "failed"
        assert faulty.was_hit, case
        faulty.calm()
        try:
            check(faulty.store, outcome == "worked")
        except AssertionError as error:
            raise AssertionError(f"{case}, which {outcome}: {error}") from error
        return outcome

    with ThreadPoolExecutor(CASES_AT_ONCE) as threads:
        outcomes = Counter(threads.map(run, chosen))
    print(f"{calm.num_requests} requests, {len(every)} cases, {len(chosen)} tried: {dict(outcomes)}")
    assert outcomes["worked"]
    assert outcomes["failed"] or count is not None  # a small sample may hold only what the client outlasts
    return outcomes
