"""What a person gets wrong: a sentence each, exit code 2, and nothing started or left behind."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typed import Driver, Run, SharedRay, Typist

from orchestrator.observe.jsonlines import read_records

pytestmark = pytest.mark.real


def assert_refused(driver: Driver, *sentences: str) -> None:
    """Exit code 2 and these parts of sentences on standard error, which holds no traceback."""
    assert driver.wait() == 2, driver.output + driver.error_output
    for sentence in sentences:
        assert sentence in driver.error_output
    assert "Traceback" not in driver.error_output


def assert_nothing_left(driver: Driver, run: Run) -> None:
    assert not run.has_folder
    assert [*Path("/tmp").glob(f"phx-ray-{driver.process.pid}-*")] == []


WRONG_WORDS = {
    "unknown key": (["train.stepz=5"], ["train.stepz", "train.steps"]),
    "unknown model": (["model=tinny"], ["model=tinny", "did you mean tiny?"]),
    "wrong type": (["train.steps=many"], ["train.steps", "many"]),
    "negative steps": (["train.steps=-5"], ["train.steps=-5 is too small; use 1 or more"]),
    "batch that does not divide": (
        ["train.global_batch_size=15"],
        ["train.global_batch_size=15 is not divisible by micro_batch_size * world_size = 2 * 2 = 4; use 12 or 16"],
    ),
    "missing data folder": (["data.path=nowhere"], ["data.path=nowhere has no manifest.json", "phalanx prepare"]),
    "data.path not set": (["data.path=null"], ["data.path is not set", "phalanx prepare"]),
    "another vocabulary": (["model.vocab_size=99"], ["model.vocab_size=99", "400"]),
    "more workers than the machine has": (
        ["cluster.num_workers=1000", "train.global_batch_size=2000"],
        ["cluster.num_workers=1000 needs 1,000 CPUs, the cluster has"],
    ),
    "a file where runs belong": (["run.root=/dev/null"], ["/dev/null/", "a file is in its way; set run.root"]),
    "a file where checkpoints belong": (["checkpoint.url=/dev/null"], ["checkpoint.url can't be used", "/dev/null"]),
    "a store that nobody knows": (
        ["checkpoint.url=s4://bucket/x"],
        ["checkpoint.url can't be used", "s4://bucket/x"],
    ),
    "what can't be trained yet": (
        ["parallel=zero3_nvme", "parallel.zero_stage=3", "parallel.nvme_path=/tmp"],
        ["parallel.offload=nvme can be planned but not trained yet", "parallel.offload=params"],
    ),
    "several at once": (
        ["train.steps=0", "optim.lr=-1", "parallel.zero_stage=7"],
        ["train.steps=0", "optim.lr=-1", "parallel.zero_stage=7"],
    ),
}


@pytest.mark.parametrize("wrong", WRONG_WORDS)
def test_wrong_words_are_refused(local_typist: Typist, run: Run, wrong: str) -> None:
    words, sentences = WRONG_WORDS[wrong]
    driver = local_typist.train(run, *words)
    assert_refused(driver, *sentences)
    assert_nothing_left(driver, run)
    assert driver.output == ""


def test_more_workers_than_the_joined_cluster_has(typist: Typist, run: Run, shared_ray: SharedRay) -> None:
    del typist.environment["RAY_ADDRESS"]
    joining = f"cluster.address={shared_ray.address}"
    driver = typist.train(run, joining, "cluster.num_workers=1000", "train.global_batch_size=2000")
    assert_refused(driver, "cluster.num_workers=1000 needs 1,000 CPUs, the cluster has 8", "cluster.num_workers=8")
    assert_nothing_left(driver, run)


def test_a_cluster_that_is_not_there(local_typist: Typist, run: Run) -> None:
    driver = local_typist.train(run, "cluster.address=localhost:1")
    assert_refused(driver, "cluster.address=localhost:1 does not answer as a Ray cluster")
    assert_nothing_left(driver, run)


def test_a_truncated_shard_is_refused(local_typist: Typist, run: Run, data: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(data, damaged)
    shard = damaged / json.loads((damaged / "manifest.json").read_text())["train"]["shards"][0]["file"]
    os.truncate(shard, 1000)
    driver = local_typist.train(run, f"data.path={damaged}")
    assert_refused(driver, str(shard), "has 1,000 bytes, the manifest says")
    assert_nothing_left(driver, run)


def test_a_shard_with_a_flipped_bit_is_refused(local_typist: Typist, run: Run, data: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(data, damaged)
    shard = damaged / json.loads((damaged / "manifest.json").read_text())["train"]["shards"][0]["file"]
    tokens = bytearray(shard.read_bytes())
    tokens[len(tokens) // 2] ^= 1
    shard.write_bytes(tokens)
    driver = local_typist.train(run, f"data.path={damaged}")
    assert_refused(driver, f"{shard} is damaged or another file: its xxh3_128 is", "prepare the data again")
    assert_nothing_left(driver, run)
    assert len(driver.error_output.splitlines()) == 1


def prepare(typist: Typist, source: Path, *words: str) -> Driver:
    return typist.type(
        "prepare",
        "model=tiny",
        "data.vocab_size=300",
        f"data.source={source}/*.txt",
        f"data.path={source}/out",
        *words,
    )


def test_a_source_that_is_not_text_is_named_and_counted(typist: Typist, tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("a good text\n" * 500)
    (tmp_path / "latin.txt").write_bytes("naïve\n".encode("latin-1") * 50)
    refused = prepare(typist, tmp_path, "data.on_bad=error")
    assert_refused(refused, "latin.txt")
    skipped = prepare(typist, tmp_path)
    assert skipped.wait() == 0
    assert "skipped     1 that can't be read" in skipped.output
    assert "latin.txt" in skipped.output


def test_an_empty_corpus_is_refused(typist: Typist, tmp_path: Path) -> None:
    assert_refused(prepare(typist, tmp_path), "data.source")
    (tmp_path / "empty.txt").touch()
    assert_refused(prepare(typist, tmp_path), "data.source")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_run_folder_of_another_model_is_refused(typist: Typist, reference: Run) -> None:
    before = reference.folder.plan.read_bytes()
    same_id = f"run.id={reference.folder.run_id}"
    driver = typist.train(reference, same_id, "model.hidden_size=128", "train.steps=70")
    assert_refused(driver, "model.hidden_size", "64", "128")
    assert reference.folder.plan.read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(local_typist: Typist, run: Run, reference: Run) -> None:
    url = f"checkpoint.url={reference.folder.checkpoints}"
    driver = local_typist.train(run, url, "model.num_layers=3")
    assert_refused(driver, str(reference.folder.checkpoints), "model.num_layers", "2", "3")
    assert_nothing_left(driver, run)


def test_checkpoints_that_have_vanished_are_missed(local_typist: Typist, reference: Run, tmp_path: Path) -> None:
    """A mount that is not there must not make a new run of an old one."""
    copy = Run(tmp_path / "copied")
    shutil.copytree(reference.folder.path, copy.root / reference.folder.run_id)
    shutil.rmtree(copy.folder.checkpoints)
    driver = local_typist.train(copy, "train.steps=70")
    assert_refused(driver, str(copy.folder.checkpoints), "holds no checkpoint", "steps up to 60")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """1 MiB, less than a checkpoint of the tiny model takes."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mount = subprocess.run(command, check=False, capture_output=True)
    if mount.returncode:
        pytest.skip(f"can't mount a small disk: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_too_little_room_is_refused(local_typist: Typist, small_disk: Path) -> None:
    run = Run(small_disk / "runs")
    driver = local_typist.train(run)
    assert_refused(driver, "1 MiB free, one checkpoint of", "free some space or set checkpoint.url")
    assert_nothing_left(driver, run)


def test_a_disk_that_fills_up_fails_the_run(typist: Typist, small_disk: Path, reference: Run) -> None:
    resize(small_disk, "2500k")  # one checkpoint fits, a second one does not
    run = Run(small_disk / "runs")
    failed = typist.train(run, "checkpoint.keep_last=1", "checkpoint.final_timeout_s=2")
    assert failed.wait() == 1
    assert "could not be saved" in failed.error_output + failed.output
    assert run.events("checkpoint_failed")
    assert [event["step"] for event in run.events("checkpoint_committed")] == [7]
    resize(small_disk, "50m")
    typist.train(run, "checkpoint.keep_last=1").finish()
    assert run.rows()[60].loss == reference.rows()[60].loss


def test_a_run_folder_that_fills_up_stops_the_run_which_goes_on_once_there_is_room(
    typist: Typist, small_disk: Path, reference: Run, tmp_path: Path
) -> None:
    """Checkpoints are elsewhere. Whichever file is the first that finds no room is named."""
    run = Run(small_disk / "runs")
    words = [f"checkpoint.url={tmp_path}/kept", "train.steps=100000", "optim.schedule_steps=60"]  # no end by itself
    stopped = typist.train(run, *words)
    stopped.wait_for_step(run, 8)
    with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))
    assert stopped.wait() == 1, stopped.error_output
    (sentence,) = [line for line in stopped.error_output.splitlines() if "the run has stopped after" in line]
    assert re.match(rf"{run.folder.path}/\S+ can't be written \(No space left on device\): ", sentence)
    assert (
        f"then this goes on: phalanx train {shlex.join([*typist.words, f'run.root={run.root}', *words])}" in sentence
    )
    assert "Traceback" not in stopped.error_output
    last = max(run.rows())
    (small_disk / "filler").unlink()
    resize(small_disk, "50m")
    again = typist.train(run, *words)
    again.wait_for_step(run, last + 5)
    again.process.terminate()
    assert again.wait() == 75, again.error_output
    rows, calm = run.rows(), reference.rows()
    assert list(rows) == list(range(1, max(rows) + 1))
    shared = sorted({*rows} & {*calm})
    assert [rows[step].loss for step in shared] == [calm[step].loss for step in shared]
    for file in (run.folder.events, run.folder.metrics):
        assert len(file.read_text().splitlines()) - len([*read_records(file)]) <= 1  # the one that found no room


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def test_two_drivers_of_one_run(typist: Typist, run: Run) -> None:
    endless = ["train.steps=100000", "optim.schedule_steps=60"]  # however long the second takes to start
    first = typist.train(run, *endless)
    first.wait_for_step(run, 1)
    second = typist.train(run, *endless)
    assert_refused(second, "is already running", f"pid {first.process.pid}", "phalanx status")
    first.process.terminate()
    assert first.wait() == 75
    assert len(run.events("attempt_started")) == 1
