"""A run that can't go on says so once, in words."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xxhash
from typed import Run, Typist

pytestmark = pytest.mark.real


@pytest.fixture
def spoilt_data(data: Path, tmp_path: Path) -> Path:
    """Prepared data, sound by its manifest, in which every hundredth part holds a token not in the vocabulary."""
    spoilt = tmp_path / "spoilt"
    shutil.copytree(data, spoilt)
    manifest = json.loads((spoilt / "manifest.json").read_text())
    for shard in manifest["train"]["shards"]:
        tokens = np.memmap(spoilt / shard["file"], dtype="<u2", mode="r+")
        tokens[:: tokens.size // 100] = 60_000
        tokens.flush()
        shard["xxh3_128"] = xxhash.xxh3_128_hexdigest(tokens.tobytes())
    (spoilt / "manifest.json").write_text(json.dumps(manifest))
    return spoilt


def test_the_same_failure_three_times_ends_the_run(typist: Typist, run: Run, spoilt_data: Path) -> None:
    driver = typist.train(run, f"data.path={spoilt_data}", "checkpoint.every_steps=1")
    assert driver.wait() == 1
    (failed,) = run.events("run_failed")
    assert "Traceback" not in driver.output + driver.error_output
    said = driver.output + driver.error_output
    assert failed["digest"] in said
    assert f"rank {failed['rank']} on " in failed["digest"]
    assert "cause: " in failed["digest"]
    assert "next: phalanx logs" in failed["digest"]
    last_attempts = [event["resume_step"] for event in run.events("attempt_started")][-3:]
    assert len(set(last_attempts)) == 1

    path = str(run.folder.path)
    status = typist.type("status", path, "--json")
    assert json.loads(status.output)["state"] == "failed"
    logs = typist.type("logs", path)
    assert logs.wait() == 0
    assert f"rank_{failed['rank']:05d}.log" in logs.error_output
    assert "Error" in logs.output
