"""Data -> checkpoint -> export: what `phalanx export` leaves in its folder and in W&B, by the real client."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from observe.step_rows import row as step_row
from observe.wandb_server import API_KEY, WandbServer
from trained_run import write_data, write_run

from launch import cli
from launch.status import wandb_words
from orchestrator.config import WandbConfig
from orchestrator.data.shards import read_manifest
from orchestrator.observe.artifacts import checkpoint_artifact, data_artifact
from orchestrator.observe.ledger import Ledger
from orchestrator.observe.metrics import MetricsLog
from orchestrator.observe.tracking import start_tracking
from orchestrator.runfolder import RunFolder

pytestmark = pytest.mark.real
WANDB = str(Path(sys.executable).with_name("wandb"))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "NETRC"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    manifest = write_data(tmp_path / "data")
    words = ("tracking=wandb", "tracking.wandb.group=night")
    return write_run(tmp_path / "runs", "tiny-1", tmp_path / "data", manifest, steps=[1, 2], words=words)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", API_KEY)
        yield server


def exported(run: RunFolder, name: str, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = run.path.parent.parent / name
    assert cli.main(["export", str(run.path), str(folder)]) == 0
    assert capsys.readouterr().err == ""
    return folder


def test_the_chain_is_in_w_and_b_and_an_export_again_adds_no_run(
    run: RunFolder, server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(run.path.parent.parent / "data")
    training = start_tracking(
        WandbConfig(),
        run_id="tiny-1",
        run_folder=run,
        run_config={},
        resumed=False,
        used=[data_artifact(data, read_manifest(data))],
        made=[checkpoint_artifact("tiny-1", str(run.checkpoints / "step_00000002"), 2, 5)],
    )
    training.close(0)
    folder = exported(run, "hf", capsys)
    again = exported(run, "hf2", capsys)
    assert {*server.runs} == {"tiny-1", "tiny-1-export-2"}
    export = server.runs["tiny-1-export-2"]
    assert (export.created["jobType"], export.created["groupName"]) == ("export", "night")
    assert export.exit_codes == [0, 0]
    used = [server.artifacts[int(use["artifactID"].removeprefix("artifact-")) - 1] for use in server.uses]
    assert [use["artifactCollectionName"].partition("-")[0] for use in used] == ["data", "tiny", "tiny"]
    assert {use["artifactCollectionName"] for use in used[1:]} == {"tiny-1-checkpoint"}
    digests: dict[str, set[str]] = {}
    for artifact in server.artifacts:
        digests.setdefault(artifact["artifactCollectionName"], set()).add(artifact["digest"])
    assert len(digests["tiny-1-checkpoint"]) == 1, "what the run made is what the export used"
    assert len(digests["tiny-1-export"]) == 2, "two places"
    assert [use["runName"] for use in server.uses] == ["tiny-1", "tiny-1-export-2", "tiny-1-export-2"]
    made = json.loads(next(a for a in server.artifacts if a["artifactCollectionName"] == "tiny-1-export")["metadata"])
    assert made["from"]["checkpoint"]["uri"] == (run.checkpoints / "step_00000002").resolve().as_uri()
    assert made["from"]["data"]["name"].startswith("data-data-")
    for place in (folder, again):
        facts = json.loads((place / "lineage.json").read_text())
        assert facts["export"]["uri"] == place.as_uri()
        assert (
            facts["checkpoint"] | {"step": 2, "run": "tiny-1", "uri": made["from"]["checkpoint"]["uri"]}
            == (facts["checkpoint"])
        )
        assert facts["data"]["wandb_artifact"] == made["from"]["data"]["name"]


def test_what_a_run_used_and_made_offline_is_sent_with_its_steps(
    run: RunFolder, server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.wandb / "offline-run-1-tiny-1").mkdir(parents=True)
    (run.wandb / "offline-run-1-tiny-1/run-tiny-1.wandb").touch()
    ledger, log = Ledger(run.events, lambda: 1.0), MetricsLog(run.metrics)
    for step in (1, 2):
        log.append(step_row(step))
        place = run.checkpoints / f"step_0000000{step}"
        ledger.append("checkpoint_committed", 1, step, path=str(place), bytes=7)
    assert wandb_words(run) == f"offline, 1 segment; to upload: phalanx sync {run.path}"
    assert cli.main(["sync", str(run.path)]) == 0
    assert capsys.readouterr().err == ""
    made = {artifact["artifactCollectionName"].partition("-")[0]: artifact for artifact in server.artifacts}
    assert {*made} == {"data", "tiny"}
    assert json.loads(made["tiny"]["metadata"]) == {"step": 2, "bytes": 7}
    assert [use["runName"] for use in server.uses] == ["tiny-1"]
    assert [row["train/step"] for row in server.runs["tiny-1"].rows if "train/step" in row] == [1, 2]
    assert wandb_words(run) == "online, 2 segments"


def test_offline_the_export_itself_says_what_it_came_from(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = run.path.parent.parent / "hf"
    assert cli.main(["export", str(run.path), str(folder)]) == 0
    said = capsys.readouterr()
    (segment,) = (run.path / "exports/wandb").glob("offline-run-*")
    assert str(segment) in said.out
    assert f"wandb sync {run.path}/exports/wandb/*run-*-tiny-1-export-2" in said.err
    done = subprocess.run(
        [WANDB, "leet", "inspect", "--json", str(segment)], capture_output=True, text=True, check=True
    )
    records = list(map(json.loads, done.stdout.splitlines()))
    text = json.dumps([record for record in records if record["type"] not in ("run", "history", "stats")])
    assert "tiny-1-export" in text
    assert (run.checkpoints / "step_00000002").resolve().as_uri() in text


def test_without_w_and_b_the_folder_has_it_all_the_same(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    folder = exported(run, "hf", capsys)
    assert json.loads((folder / "lineage.json").read_text())["checkpoint"]["run"] == "tiny-1"
    assert not (run.path / "exports").exists()


def test_a_checkpoint_named_by_its_folder_has_no_run_to_tell(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run.path.parent.parent / "hf"
    assert cli.main(["export", str(run.checkpoints / "step_00000001"), str(folder)]) == 0
    assert json.loads((folder / "lineage.json").read_text())["checkpoint"]["step"] == 1
    assert not (run.path / "exports").exists()
