"""Checkpoints on a real S3 server (moto's), and on one that fails at every request in turn."""

import random
import secrets
import signal
import threading

import pytest
from disturbed_run import Run, phalanx, prepare_data, wait_for
from s3_server import BUCKET, CREDENTIALS, FAULTS, Plan, Proxy, client_of, moto_server
from saving import random_state, save

from orchestrator.checkpoint.commit import committed_steps, newest_valid, prune
from orchestrator.checkpoint.layout import MARKER
from orchestrator.checkpoint.reader import CheckpointReader
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.retry import ANY, Patience, retried
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import logical_digest, verify
from orchestrator.errors import CheckpointError, StoreError, StoreFault

SHAPES = {"w": (50, 8), "b": (3,)}
SEED = 3
COUNTS = [pytest.param(5, id="sample"), pytest.param(None, id="all", marks=pytest.mark.soak)]
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


def cases(num_requests: int, count: int | None) -> list[tuple[str, int]]:
    every = [(fault, number) for fault in FAULTS for number in range(num_requests)]
    return every if count is None else random.Random(SEED).sample(every, min(count, len(every)))


@pytest.mark.parametrize("count", COUNTS)
def test_a_fault_at_any_request_of_a_save(proxy, store, count):
    """The client's own retries outlast one fault; of many, the save fails cleanly or has happened."""
    save(store, 10, random_state(SHAPES, seed=10))
    proxy.plan = Plan()
    save(store, 20, random_state(SHAPES, seed=20))
    digests = {step: digest_of(store, step) for step in (10, 20)}
    outcomes = {"saved": 0, "failed": 0}
    for fault, number in cases(len(proxy.plan.seen), count):
        for hits in (1, BEYOND_THE_CLIENT):
            store.remove("step_00000020")
            proxy.plan = Plan(fault, number, hits)
            try:
                save(store, 20, random_state(SHAPES, seed=20))
                is_saved = True
            except CheckpointError as error:
                assert isinstance(error, StoreError) or "can't be committed" in str(error), error
                is_saved = False
            outcomes["saved" if is_saved else "failed"] += 1
            proxy.plan = Plan()
            step = newest_step(store)
            assert step == 20 or (step == 10 and not is_saved), (fault, number, hits)
            assert digest_of(store, step) == digests[step]
            assert verify(store, 10) == []
    print(outcomes)
    assert outcomes["saved"]
    assert outcomes["failed"] or count is not None  # a small sample may hold only what the client outlasts


@pytest.mark.parametrize("count", COUNTS)
def test_a_fault_at_any_request_of_a_load(proxy, store, count):
    """Never wrong bytes, never a good checkpoint set aside: the right state, or an error of the store's."""
    for step in (10, 20):
        save(store, step, random_state(SHAPES, seed=step))
    digest = digest_of(store, 20)
    proxy.plan = Plan()
    assert newest_step(store) == 20
    assert digest_of(store, 20) == digest
    outcomes = {"loaded": 0, "refused": 0}
    for fault, number in cases(len(proxy.plan.seen), count):
        for hits in (1, BEYOND_THE_CLIENT):
            proxy.plan = Plan(fault, number, hits)
            try:
                assert newest_step(store) == 20, (fault, number, hits)
                assert digest_of(store, 20) == digest
                outcomes["loaded"] += 1
            except StoreError:
                outcomes["refused"] += 1
    proxy.plan = Plan()
    assert committed_steps(store) == [10, 20]
    print(outcomes)
    assert all(outcomes.values())


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
