"""`phalanx doctor` as it is typed."""

import json
from pathlib import Path

import pytest

from launch import cli


@pytest.fixture(autouse=True)
def outside_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_rows_and_a_sum(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["doctor", "--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("OK    python")
    assert " OK, " in lines[-1]


def test_json_has_the_same_rows_and_a_failure_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["doctor", "--json", "--root", str(tmp_path), "--address", "127.0.0.1:1"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["level"] == "FAIL"
    assert [row["row"] for row in told["findings"] if row["level"] == "FAIL"] == ["ray"]


def test_nodes_outside_of_an_allocation_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--nodes"]) == 2
    assert "salloc" in capsys.readouterr().err
