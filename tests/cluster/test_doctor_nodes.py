"""`phalanx doctor --nodes` in a real allocation: every node asked, the shared folder tried, a lame node named."""

import json
import sys
from pathlib import Path

import pytest
from cluster.jobs import output, sbatch, wait_for

from launch.virtual.cluster import VirtualCluster

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]


def doctor(cluster: VirtualCluster, folder: Path) -> list[dict[str, str]]:
    line = f"PYTHONPATH={ROOT} {sys.executable} -m launch.cli doctor --nodes --json --root {folder}"
    job = sbatch(cluster, "--nodes=2", "--mem=3000", script=f"{line}; true")
    assert wait_for(cluster, job)["JobState"] == "COMPLETED"
    found: list[dict[str, str]] = json.loads(output(cluster, job))["findings"]
    return found


def test_every_node_is_asked_and_the_shared_folder_tried(slurm: VirtualCluster) -> None:
    folder = slurm.shared / "runs"
    rows = {(row["row"], row["level"]): row["found"] for row in doctor(slurm, folder)}
    assert rows["python", "OK"].endswith("(all 2 nodes)")
    assert rows[f"shared folder {folder}", "OK"] == "seen and written (all 2 nodes)"
    assert {row for row, level in rows if row.startswith("clock of") and level == "OK"} == {
        f"clock of {node}" for node in slurm.nodes[:2]
    }
    assert list(folder.iterdir()) == []


def test_a_folder_that_each_node_has_for_itself_is_told(slurm: VirtualCluster) -> None:
    rows = [row for row in doctor(slurm, Path("/tmp/phalanx-runs")) if row["row"].startswith("shared folder")]
    assert {row["level"] for row in rows} == {"OK", "FAIL"}
    (failed,) = [row for row in rows if row["level"] == "FAIL" and "another one" in row["found"]]
    assert slurm.nodes[1] in failed["found"]
    assert "file system" in failed["cure"]
