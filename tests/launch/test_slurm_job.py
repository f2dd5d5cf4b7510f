"""The program that a job's script becomes, with SLURM's commands as scripts: it is put back, and not for ever."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.compose import compose
from launch.submit import spec_of
from orchestrator.codec import encode
from orchestrator.observe.ledger import read_events
from orchestrator.runfolder import RunFolder

SCONTROL = """#!/bin/sh
case "$*" in
*hostnames*) echo n1;;
*requeue*) echo "$*" >> {log};;
*) echo "JobId=7 JobState=RUNNING Reason=None Restarts=0 EndTime=2099-01-01T00:00:00 NodeList=n1 BatchHost=n1";;
esac
"""
SRUN = "#!/bin/sh\nkill -USR1 $PPID\nexec cat > /dev/null\n"
"""The notice comes while Ray starts."""


@pytest.fixture
def requeues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What scontrol was told."""
    log = tmp_path / "requeues"
    (tmp_path / "bin").mkdir()
    for name, text in (("scontrol", SCONTROL.format(log=log)), ("srun", SRUN)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    return log


def test_a_job_whose_time_is_never_enough_for_a_driver_gives_up_at_the_third_time(
    tmp_path: Path, requeues: Path
) -> None:
    words = ["experiment=tiny_test", "cluster=slurm", "cluster.device=cpu", "cluster.slurm.preflight.enabled=false"]
    folder = RunFolder(tmp_path / "runs/short")
    folder.slurm.mkdir(parents=True)
    folder.job_spec.write_text(json.dumps(encode(spec_of(compose(words).config, words, "cpu", folder))))
    job = [sys.executable, "-m", "launch.job.batch", str(folder.path)]
    ends = [subprocess.run(job, capture_output=True, text=True, check=False) for _ in range(3)]
    assert [end.returncode for end in ends] == [75, 75, 1], ends
    assert "caught SIGUSR1" in ends[0].stdout
    assert "no checkpoint was made in 3 jobs, so another would not help" in ends[2].stdout
    assert requeues.read_text() == "requeue 7\n" * 2
    assert [event["event"] for event in read_events(folder.events)] == ["requeued"] * 2
