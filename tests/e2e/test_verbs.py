"""What can be done with a finished run, and that its metrics say what was really read."""

import json
from pathlib import Path

import numpy as np
import pytest
import xxhash
from typed import Run, Typist

from orchestrator.data.order import GlobalOrder

pytestmark = pytest.mark.real


def test_status_and_logs_tell_of_the_run(typist: Typist, reference: Run) -> None:
    path = str(reference.folder.path)
    status = typist.type("status", path)
    assert status.wait() == 0
    assert "finished" in status.output
    assert "60 of 60" in status.output
    table = typist.type("status", "--root", str(reference.root), "--json")
    assert [(run["run_id"], run["state"]) for run in json.loads(table.output)] == [
        (reference.folder.run_id, "finished")
    ]
    logs = typist.type("logs", path, "--rank", "1")
    assert logs.wait() == 0
    assert "rank 1 of 2" in logs.output


def test_checkpoints_are_listed_and_verify(typist: Typist, reference: Run) -> None:
    listed = typist.type("ckpt", "ls", str(reference.folder.path), "--json")
    steps = [(row["step"], row["state"]) for row in json.loads(listed.output)["checkpoints"]]
    assert steps == [(step, "committed") for step in (49, 56, 60)]
    verified = typist.type("ckpt", "verify", str(reference.folder.path), "--digest")
    assert verified.wait() == 0
    assert len(verified.output.splitlines()[-1]) == 32


def test_evaluate_agrees_with_the_training_run(typist: Typist, reference: Run) -> None:
    done = typist.type("evaluate", str(reference.folder.path), "--rows", "16", "--json")
    assert done.wait() == 0, done.error_output
    assert json.loads(done.output)["loss"] == pytest.approx(reference.rows()[60].eval_loss, rel=1e-5)


def test_generate_continues_the_prompt(typist: Typist, reference: Run) -> None:
    words = ["generate", str(reference.folder.path), "--prompt", "import ", "--max-tokens", "20"]
    first, again = typist.type(*words), typist.type(*words)
    assert first.wait() == 0, first.error_output
    assert first.output.startswith("import ")
    assert len(first.output) > len("import \n")
    assert first.output == again.output


def test_export_writes_safetensors(typist: Typist, reference: Run, tmp_path: Path) -> None:
    done = typist.type("export", str(reference.folder.path), str(tmp_path / "exported"))
    assert done.wait() == 0, done.error_output
    names = {path.name for path in (tmp_path / "exported").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


@pytest.mark.parametrize("step", [1, 2, 33, 60])
def test_the_batch_digest_is_that_of_the_shards(data: Path, reference: Run, step: int) -> None:
    """Computed a second way: the whole stream from the files, one hash per row, summed."""
    manifest = json.loads((data / "manifest.json").read_text())
    shards = [np.fromfile(data / shard["file"], dtype="<u2") for shard in manifest["train"]["shards"]]
    stream = np.concatenate(shards).astype("<u4")
    plan = json.loads(reference.folder.plan.read_text())
    seq_len, batch = plan["batch"]["seq_len"], plan["batch"]["global_batch_size"]
    order = GlobalOrder(num_rows=(stream.size - 1) // seq_len, seed=1234)
    total = 0
    for row in order.rows_of_window(step - 1, batch).tolist():
        tokens = stream[row * seq_len : row * seq_len + seq_len + 1]
        total += xxhash.xxh3_64_intdigest(row.to_bytes(8, "little") + tokens.tobytes())
    assert reference.rows()[step].batch_digest == f"{total % 2**64:016x}"
