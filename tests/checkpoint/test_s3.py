"""Checkpoints on a real S3 server (moto's), and on one that fails at every request in turn."""

import random
import secrets
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from disturbed_run import Run, phalanx, prepare_data, wait_for
from s3_server import BUCKET, CREDENTIALS, FAULTS, Plan, Proxy, client_of, moto_server
from saving import random_state, save, write

from launch.compose import compose
from orchestrator.checkpoint.commit import commit, committed_steps, newest_valid, prune
from orchestrator.checkpoint.fencing import Claim, new_claim, newest_attempt, refuse_if_fenced, take
from orchestrator.checkpoint.layout import MARKER
from orchestrator.checkpoint.reader import CheckpointReader, read_marker
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.retry import ANY, Patience, retried
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import logical_digest, verify
from orchestrator.control.driver import degraded
from orchestrator.errors import CheckpointError, FencedError, StoreError, StoreFault
from orchestrator.runfolder import RunFolder

SHAPES = {"w": (50, 8), "b": (3,)}
SEED = 3
COUNTS = [pytest.param(5, id="sample"), pytest.param(None, id="all", marks=pytest.mark.soak)]
CASES_AT_ONCE = 16
BEYOND_THE_CLIENT = 25
"""Requests in a row that outlast the retries of the S3 client itself."""


@pytest.fixture(scope="module")
def proxy():
    with moto_server() as port, pytest.MonkeyPatch.context() as patch:
        proxy = Proxy(port)
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        patch.setenv("NO_PROXY", "127.0.0.1")
        proxy.upstream_port = port
        yield proxy
        proxy.close()


@pytest.fixture
def store(proxy):
    proxy.plan = Plan()
    return Store(f"s3://{BUCKET}/{secrets.token_hex(4)}")


def digest_of(store: Store, step: int) -> str:
    return logical_digest(CheckpointReader.open(store.url_of(f"step_{step:08d}")))


def newest_step(store: Store) -> int | None:
    marker = newest_valid(store, None, lambda step, reason: pytest.fail(f"step {step} was rejected: {reason}"))
    return marker.step if marker else None


def test_save_load_and_retention(store):
    for step in (10, 20, 30):
        save(store, step, random_state(SHAPES, seed=step))
    assert newest_step(store) == 30
    assert digest_of(store, 20) != digest_of(store, 30)
    store.write_atomic(f"step_00000030/{MARKER}", [b"torn"])
    told: list[int] = []
    marker = newest_valid(store, None, lambda step, reason: told.append(step))
    assert marker is not None
    assert (marker.step, told) == (20, [30])
    prune(store, Retention(keep_last=1))
    assert committed_steps(store) == [20]
    assert verify(store, 20) == []


def test_large_files_go_in_parts_and_a_failure_publishes_nothing(proxy, store):
    rng = random.Random(0)
    whole = [rng.randbytes(9 << 20) for _ in range(5)]
    store.write_atomic("f", whole)
    assert store.size("f") == 45 << 20
    assert store.read("f") == b"".join(whole)
    assert b"".join(bytes(chunk) for chunk in store.read_chunks("f", chunk_bytes=9 << 20)) == b"".join(whole)

    def failing():
        yield from whole
        raise RuntimeError("the device is gone")

    for path in ("f", "g"):
        with pytest.raises(RuntimeError, match="the device is gone"):
            store.write_atomic(path, failing())
    assert store.list() == ["f"]
    assert store.size("f") == 45 << 20
    assert "Uploads" not in client_of(proxy.upstream_port).list_multipart_uploads(Bucket=BUCKET)


def test_of_many_writers_one_creates(store):
    """By the server's own conditional put, not by a look before it."""
    assert store.claims_exclusively()
    start, won = threading.Barrier(6), []

    def claim(number: int) -> None:
        start.wait()
        if store.create_exclusive("claim", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) <= 1
    assert store.read("claim") == str(won[0]).encode()


def test_a_store_that_ignores_exclusive_create_is_named_at_the_start(proxy, store, tmp_path):
    folder = RunFolder(tmp_path)
    config = compose(["experiment=tiny_test", f"checkpoint.url={store.url}"]).config
    joined = SimpleNamespace(is_ours=False)
    assert degraded(config, "cpu", joined, folder) == []
    proxy.ignores_conditions = True
    try:
        assert not store.claims_exclusively()
        (warning,) = degraded(config, "cpu", joined, folder)
    finally:
        proxy.ignores_conditions = False
    assert warning.startswith(
        f"checkpoint.url={store.url} has no exclusive create: two live copies of this run could"
    )
    assert store.list() == [], "the try left nothing"


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("expired", StoreFault.denied, "the credentials have expired; renew them"),
        ("slow_down", StoreFault.busy, "the store does not answer as it should"),
        ("error_500", StoreFault.busy, "the store does not answer as it should"),
        ("cut_upload", StoreFault.busy, "the store does not answer as it should"),
    ],
)
def test_each_fault_is_one_sentence(proxy, store, fault, kind, words):
    proxy.plan = Plan(fault, 0, 10_000)
    with pytest.raises(StoreError) as caught:
        store.write_atomic("f", [b"x"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.fault is kind


def test_a_missing_bucket_is_named(proxy):
    proxy.plan = Plan()
    with pytest.raises(StoreError, match="bucket or device is gone") as caught:
        Store("s3://no-such-bucket/run").write_atomic("f", [b"x"])
    assert caught.value.fault is StoreFault.gone


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


Prepare, Act = Callable[[Store], None], Callable[[Store], None]


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


STATES = {step: random_state(SHAPES, seed=step) for step in (10, 20, 30)}


def saved(*steps: int) -> Prepare:
    def prepare(store: Store) -> None:
        for step in steps:
            save(store, step, STATES[step])

    return prepare


@pytest.fixture(scope="module")
def digests(proxy) -> dict[int, str]:
    calm = FaultyStore(proxy).store
    saved(*STATES)(calm)
    return {step: digest_of(calm, step) for step in STATES}


@pytest.mark.parametrize("count", COUNTS)
def test_a_fault_at_any_request_of_a_save(proxy, digests, count):
    """The client's own retries outlast one fault; of many, the save fails cleanly or has happened."""

    def check(store: Store, has_worked: bool) -> None:
        step = newest_step(store)
        assert step == 20 or (step == 10 and not has_worked)
        assert digest_of(store, step) == digests[step]
        assert verify(store, 10) == []

    at_every_request(proxy, count, prepare=saved(10), act=saved(20), check=check)


@pytest.mark.parametrize("count", COUNTS)
def test_a_fault_at_any_request_of_a_load(proxy, digests, count):
    """Never wrong bytes, never a good checkpoint set aside: the right state, or an error of the store's."""

    def load(store: Store) -> None:
        assert newest_step(store) == 20
        assert digest_of(store, 20) == digests[20]

    def check(store: Store, has_worked: bool) -> None:
        assert committed_steps(store) == [10, 20]

    at_every_request(proxy, count, prepare=saved(10, 20), act=load, check=check)


@pytest.mark.parametrize("count", COUNTS)
def test_a_fault_at_any_request_of_retention(proxy, digests, count):
    """Whatever stops it, all that is still committed is whole, and the next one finishes the work."""

    def delete(store: Store) -> None:
        prune(store, Retention(keep_last=1))

    def check(store: Store, has_worked: bool) -> None:
        left = committed_steps(store)
        assert left == [30] or not has_worked
        for step in left:
            assert verify(store, step) == []
        assert (newest_step(store), digest_of(store, 30)) == (30, digests[30])
        delete(store)
        assert committed_steps(store) == [30]

    at_every_request(proxy, count, prepare=saved(10, 20, 30), act=delete, check=check)


@pytest.mark.parametrize("count", COUNTS)
def test_a_fault_at_any_request_of_a_claim(proxy, count):
    """A claim that was not answered is put again by the first commit; nobody else ever has its number."""
    ours = new_claim(1, "run")

    def claim(store: Store) -> None:
        assert take(store, ours), "nobody else is there"
        refuse_if_fenced(store, 1, ours)

    def check(store: Store, has_worked: bool) -> None:
        claim(store)
        assert not take(store, new_claim(1, "run"))
        assert newest_attempt(store) == 1

    at_every_request(proxy, count, prepare=lambda store: None, act=claim, check=check)


def test_of_two_live_copies_of_a_run_the_older_commits_nothing_more(proxy):
    """Both claim, both write, both commit: on the server's own conditional put."""
    store = FaultyStore(proxy).store
    older, newer = new_claim(1, "run"), new_claim(2, "run")
    assert take(store, older)
    first = write(store, 10, STATES[10], attempt=1)
    commit(store, first, older)
    assert take(store, newer)
    late = write(store, 20, STATES[20], attempt=1)
    with pytest.raises(FencedError, match="attempt 1 may not commit"):
        commit(store, late, older)
    ours = write(store, 20, STATES[20], attempt=2, seed=5)
    commit(store, ours, newer)
    assert (newest_step(store), read_marker(store, 20).attempt) == (20, 2)
    with pytest.raises(FencedError):
        commit(store, late, older)
    assert verify(store, 20) == []


def test_a_commit_that_looked_before_the_newer_claim_replaces_nothing(proxy):
    """The one gap that is left (see fencing.py): the older one's put comes after the newer one has committed."""
    store = FaultyStore(proxy).store
    older, newer = new_claim(1, "run"), new_claim(2, "run")
    assert take(store, older)
    refuse_if_fenced(store, 1, older)  # it looks, and is alone
    assert take(store, newer)
    ours = write(store, 20, STATES[20], attempt=2, seed=5)
    commit(store, ours, newer)
    late = write(store, 20, STATES[20], attempt=1)
    assert not store.create_exclusive(f"step_00000020/{MARKER}", late.to_json().encode())
    assert (read_marker(store, 20).attempt, verify(store, 20)) == (2, [])


@pytest.mark.parametrize("rounds", [pytest.param(3, id="sample"), pytest.param(40, id="all", marks=pytest.mark.soak)])
def test_of_many_that_claim_and_commit_at_once_one_wins(proxy, rounds):
    for _ in range(rounds):
        store = FaultyStore(proxy).store
        claims = [new_claim(1, "run") for _ in range(4)]
        marker = write(store, 10, STATES[10])
        start = threading.Barrier(len(claims))

        def attempt(claim: Claim, store=store, start=start, marker=marker) -> bool:
            start.wait()
            if not take(store, claim):
                return False
            commit(store, marker, claim)
            return True

        with ThreadPoolExecutor(len(claims)) as threads:
            won = list(threads.map(attempt, claims))
        assert won.count(True) == 1
        assert (newest_step(store), newest_attempt(store)) == (10, 1)


def test_retries_outlast_what_the_client_does_not(proxy, store):
    for fault in ("slow_down", "expired"):
        proxy.plan = Plan(fault, 0, 20)
        waited: list[StoreFault] = []
        retried(
            lambda: store.write_atomic("f", [b"content"]),
            Patience(300.0, ANY),
            pause=lambda seconds: False,
            on_wait=lambda error: waited.append(error.fault),  # noqa: B023
        )
        assert waited, fault
        assert store.read("f") == b"content"
        store.remove("f")


@pytest.mark.real
def test_a_run_on_s3_outlives_its_outage_and_resumes(proxy, tmp_path):
    proxy.plan = Plan()
    data = prepare_data(tmp_path)
    url = f"s3://{BUCKET}/{secrets.token_hex(4)}"
    words = [f"data.path={data}", f"checkpoint.url={url}"]
    run = Run(tmp_path, words)
    try:
        run.wait_for_commit_after(0)
        proxy.plan = Plan("slow_down", 0, 10**9)
        wait_for("the outage to be noticed", lambda: "is tried again for checkpoint.retry" in run.said(), run.process)
        run.wait_until_it_trains()

        def left_out() -> list[dict]:
            return [e for e in run.events("checkpoint_failed") if "has not yet taken the checkpoint" in e["message"]]

        wait_for("checkpoints to be left out, not queued", lambda: len(left_out()) > 1, run.process)
        assert run.said().count("has not yet taken the checkpoint before it") == 1, "said once, not for each"
        proxy.plan = Plan()
        run.wait_for_commit_after(run.events("checkpoint_committed")[-1]["step"])
        wait_for("the end of the outage", lambda: "checkpoints are written again" in run.said(), run.process)
        run.process.send_signal(signal.SIGUSR1)
        assert run.end() == 75
        committed = run.events("checkpoint_committed")[-1]["step"]
        store = Store(url)
        assert committed_steps(store)[-1] == committed
        assert len(committed_steps(store)) == 2, "checkpoint.keep_last"

        run = Run(tmp_path, [*words, f"train.steps={committed + 5}"])
        assert run.end() == 0
        started = run.events("attempt_started")[-1]
        assert (started["resume_step"], started["source"]) == (committed, "remote")
        listing = phalanx("ckpt", "ls", url)
        assert str(committed + 5) in listing
        phalanx("ckpt", "verify", url)
    finally:
        run.kill()
