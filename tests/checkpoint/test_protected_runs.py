"""Real runs: encrypted ones, a copy that is overtaken, one that starts from an import, and what retention keeps."""

import base64
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from disturbed_run import Run, clean_environment

from orchestrator.checkpoint.commit import committed_steps
from orchestrator.checkpoint.fencing import new_claim, newest_attempt, take
from orchestrator.checkpoint.key import KEY_VARIABLE
from orchestrator.checkpoint.reader import read_marker
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import verify

pytestmark = pytest.mark.real
WORDS = [
    "model=tiny",
    "train.seq_len=32",
    "train.global_batch_size=2",
    "train.micro_batch_size=2",
    "optim.schedule=constant",
    "checkpoint.every_steps=2",
    "cluster.num_workers=1",
    "tracking.wandb.mode=disabled",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Prepared data with a validation split."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(300)]
    texts = [" ".join(rng.choices(words, k=60)) for _ in range(400)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ["data.vocab_size=400", "data.validation_fraction=0.2"]
    done = phalanx("prepare", f"data.source={folder}/text.jsonl", f"data.path={folder}/prepared", *options)
    assert done.returncode == 0, done.stderr
    return folder / "prepared"


def phalanx(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.cli", *words]
    return subprocess.run(command, check=False, env=clean_environment() | variables, capture_output=True, text=True)


def train(root: Path, run_id: str, data: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    where = [f"run.root={root}", f"run.id={run_id}", f"data.path={data}"]
    return phalanx("train", *WORDS, *where, *words, **variables)


def digest(folder: Path, **variables: str) -> str:
    done = phalanx("ckpt", "verify", str(folder), "--digest", **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def events(folder: Path, name: str) -> list[dict]:
    found = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == name]


def test_an_encrypted_run_is_the_plain_one_and_tells_nobody_its_key(data, tmp_path):
    secret = os.urandom(32)
    key = {KEY_VARIABLE: base64.b64encode(secret).decode()}
    for run_id, words, variables in (("plain", [], {}), ("safe", ["checkpoint.encrypt=true"], key)):
        done = train(tmp_path, run_id, data, "train.steps=4", *words, **variables)
        assert done.returncode == 0, done.stderr + done.stdout
        assert digest(tmp_path / run_id, **variables) == digest(tmp_path / "plain")
    for file in (tmp_path / "safe").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert key[KEY_VARIABLE].encode() not in content, file
            assert secret not in content, file
    assert read_marker(Store(tmp_path / "safe" / "checkpoints"), 4).encryption is not None
    wrong = {KEY_VARIABLE: base64.b64encode(bytes(32)).decode()}
    for variables, sentence in (({}, "checkpoint.encrypt=true needs a key"), (wrong, "encrypted with another key")):
        refused = train(tmp_path, "safe", data, "train.steps=6", "checkpoint.encrypt=true", **variables)
        assert refused.returncode == 2
        assert sentence in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
    assert train(tmp_path, "plain", data, "train.steps=6").returncode == 0
    resumed = train(tmp_path, "safe", data, "train.steps=6", "checkpoint.encrypt=true", **key)
    assert resumed.returncode == 0, resumed.stderr + resumed.stdout
    assert events(tmp_path / "safe", "attempt_started")[-1]["resume_step"] == 4
    assert digest(tmp_path / "safe", **key) == digest(tmp_path / "plain")


def test_a_run_that_was_taken_over_ends_with_one_sentence_and_commits_nothing_more(data, tmp_path):
    run = Run(tmp_path, [f"data.path={data}", f"checkpoint.url={tmp_path}/store", "cluster.num_workers=1"])
    try:
        run.wait_for_commit_after(0)
        store = Store(tmp_path / "store")
        assert newest_attempt(store) == 1
        assert take(store, new_claim(2, "faulty"))
        before = committed_steps(store)[-1]
        assert run.end() == 1
    finally:
        run.kill()
    steps = committed_steps(store)
    # One commit may have looked before the claim was there.
    assert steps[-1] <= before + 15
    assert all(read_marker(store, step).attempt == 1 and verify(store, step) == [] for step in steps)
    said = run.said()
    assert "attempt 1 may not commit to" in said
    assert "has taken the run over; nothing was damaged" in said
    assert "Traceback" not in said
    assert run.events("run_failed") == []


def test_a_run_starts_from_an_import_and_retention_keeps_the_best(data, tmp_path):
    first = train(tmp_path, "first", data, "train.steps=2")
    assert first.returncode == 0, first.stderr
    assert phalanx("ckpt", "export", str(tmp_path / "first"), str(tmp_path / "plain"), "--optimizer").returncode == 0
    imported = phalanx("ckpt", "import", str(tmp_path / "plain"), "--run", "second", "--root", str(tmp_path))
    assert imported.returncode == 0, imported.stderr
    words = [
        f"checkpoint.init_from={tmp_path}/second/imported",
        "train.steps=12",
        "train.eval_every_steps=2",
        "train.eval_rows=2",
        "snapshot.slots=10",  # else one that is due while the one before is being written is left out
        "checkpoint.keep_last=1",
        "checkpoint.keep_every_steps=8",
        "checkpoint.keep_best=1",
        "checkpoint.best_metric=eval_loss",
    ]
    second = train(tmp_path, "second", data, *words)
    assert second.returncode == 0, second.stderr + second.stdout
    (started,) = events(tmp_path / "second", "attempt_started")
    assert started["resume_step"] == 2
    assert started["checkpoint"] == f"{tmp_path}/second/imported/step_00000002"
    # The same batches with the same moments: the run that was simply made longer.
    assert train(tmp_path, "first", data, "train.steps=12").returncode == 0
    assert digest(tmp_path / "second") == digest(tmp_path / "first")
    rows = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    kept = committed_steps(Store(tmp_path / "second" / "checkpoints"))
    # The evaluation of the last step comes after its save: it may or may not be known when retention deletes.
    best = [-min((score, -step) for step, score in scores.items() if step <= last)[1] for last in (10, 12)]
    assert kept in [sorted({8, 12, step}) for step in best]
    pruned = [
        step for event in events(tmp_path / "second", "checkpoint_committed") for step in event.get("pruned", [])
    ]
    assert sorted({*pruned, *kept}) == [4, 6, 8, 10, 12]
    changed = train(tmp_path, "second", data, "train.steps=14")
    assert changed.returncode == 2
    assert "checkpoint.init_from was" in changed.stderr
