"""Checkpoints on a real S3 server (moto's)."""

import random
import secrets
import signal
import threading
from types import SimpleNamespace

import pytest
from disturbed_run import Run, phalanx, prepare_data, wait_for
from faulty_store import STATES, digest_of, newest_step
from s3_proxy import Plan
from s3_server import BUCKET, client_of
from saving import save

from launch.compose import compose
from orchestrator.checkpoint.commit import committed_steps, newest_valid, prune
from orchestrator.checkpoint.layout import MARKER
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.retry import ANY, Patience, retried
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import verify
from orchestrator.control.session import degraded
from orchestrator.errors import StoreError, StoreFault
from orchestrator.runfolder import RunFolder


@pytest.fixture
def store(proxy):
    proxy.plan = Plan()
    return Store(f"s3://{BUCKET}/{secrets.token_hex(4)}")


def test_save_load_and_retention(store):
    for step in (10, 20, 30):
        save(store, step, STATES[step])
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
