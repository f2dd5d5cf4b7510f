"""The demo: what it promises, what it kills, and once for real with a small model."""

import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch.demo import middle, next_commands, next_folder, run
from launch.demo_findings import Kill, Outcome, broken_promises, findings
from launch.training import rank_pid
from orchestrator.errors import ConfigError
from orchestrator.observe.metrics import StepRow
from orchestrator.runfolder import RunFolder


def row(step: int, attempt: int = 1, **changes: object) -> StepRow:
    values = {"loss": 8.0 - step, "lr": 1e-3, "grad_norm": 1.0, "tokens": 10, "tokens_per_s": 1.0, "step_s": 1.0}
    digest = f"{step:016x}"
    return StepRow(**{"step": step, "attempt": attempt, "data_s": 0.0, "batch_digest": digest, **values, **changes})


def as_promised() -> Outcome:
    """Six steps; killed after step 4, back to step 2."""
    recovered = {"event": "recovered", "downtime_s": 0.5, "steps_lost": 2, "source": "disk"}
    rows = [*(row(step) for step in (1, 2, 3, 4)), *(row(step, attempt=2) for step in (3, 4, 5, 6))]
    return Outcome(
        kills=[Kill(pid=7, at_step=4)],
        events=[{"event": "rank_died"}, recovered, {"event": "run_finished"}],
        rows=rows,
        losses=[8.0 - step for step in range(1, 7)],
    )


def test_a_run_as_promised_has_no_problems_and_is_told() -> None:
    outcome = as_promised()
    assert broken_promises(outcome) == []
    told = findings(outcome)
    assert told["cost"] == "training again after 0.50s, 2 steps run again (restored from disk)"
    assert told["run twice"] == "2 steps: the same samples in 2, the same loss to the last bit in 2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kills": []}, "was not killed"),
        ({"events": [{"event": "recovered", "steps_lost": 2}, {"event": "run_finished"}]}, "no rank_died"),
        ({"events": [{"event": "rank_died"}, {"event": "run_finished"}]}, "no recovered"),
        ({"events": as_promised().events[:-1]}, "no run_finished"),
        ({"rows": as_promised().rows[:-1]}, "every step"),
        ({"losses": [7.0, 7.0, 7.0, 7.0, 7.0, 7.0]}, "too close"),
        ({"rows": [*as_promised().rows, row(6, attempt=3, batch_digest="0" * 16)]}, "steps [6] saw other samples"),
        ({"rows": [*as_promised().rows, row(6, attempt=3, loss=2.0000001)]}, "steps [6] had another loss"),
        ({"rows": [row(step) for step in range(1, 7)]}, "no step was run twice"),
    ],
)
def test_each_broken_promise_is_named(changes: dict[str, object], words: str) -> None:
    problems = broken_promises(replace(as_promised(), **changes))
    assert len(problems) == 1
    assert words in problems[0]


@pytest.mark.parametrize(("steps", "every", "step"), [(150, 25, 83), (40, 10, 23), (4, 100, 3), (40, 0, 20)])
def test_the_kill_comes_in_the_middle_between_checkpoints(steps: int, every: int, step: int) -> None:
    assert middle(steps, every) == step


def test_each_demo_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert next_folder(tmp_path).run_id == "demo-001"
    for name in ("demo-001", "demo-007", "demo-mine", "other"):
        (tmp_path / name).mkdir()
    assert next_folder(tmp_path).run_id == "demo-008"


def test_only_a_rank_under_the_training_process_is_found(tmp_path: Path) -> None:
    log = RunFolder(tmp_path).rank_log(1, 1)
    assert rank_pid(log, descends_from=1) is None
    log.parent.mkdir()
    command = [sys.executable, "-c", "input()"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE) as child,
        subprocess.Popen(command, stdin=subprocess.PIPE) as other,
    ):
        parent = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[1]
        line = "rank 1 of 2 on {host}: attempt 1, pid {pid}\n"
        log.write_text(line.format(host=socket.gethostname(), pid=child.pid))
        assert rank_pid(log, descends_from=int(parent)) == child.pid
        assert rank_pid(log, descends_from=other.pid) is None
        log.write_text(line.format(host="elsewhere", pid=child.pid))
        assert rank_pid(log, descends_from=int(parent)) is None
        child.communicate(b"\n")
        other.communicate(b"\n")
    log.write_text(line.format(host=socket.gethostname(), pid=child.pid))
    assert rank_pid(log, descends_from=int(parent)) is None


def test_what_leaves_nothing_to_show_is_refused() -> None:
    with pytest.raises(ConfigError) as refusal:
        run(["cluster.num_workers=1", "train.steps=3", "tracking.every_steps=2"])
    keys = [problem.partition("=")[0] for problem in refusal.value.problems]
    assert keys == ["cluster.num_workers", "train.steps", "tracking.every_steps"]


@pytest.mark.real
def test_demo_with_a_small_model(tmp_path: Path) -> None:
    """The whole way: prepare, train, SIGKILL, recovery, text; exit 0 says that every promise was kept."""
    words = [
        "model=tiny",
        f"run.root={tmp_path}/runs",
        f"data.path={tmp_path}/prepared",
        f"data.source={Path(socket.__file__).parent}/json/*.py",
        "data.vocab_size=384",
        "data.validation_fraction=0.3",
        "optim.lr=1e-2",
        "train.steps=40",
        "train.seq_len=64",
        "checkpoint.every_steps=10",
    ]
    command = [sys.executable, "-m", "launch.cli", "demo", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as promised" in done.stdout
    assert re.search(r"^demo: kill -9 \d+, which is rank 1, after step \d+$", done.stdout, re.MULTILINE)
    assert re.search(r"^\$ phalanx train experiment=quickstart run.id=demo-001 ", done.stdout, re.MULTILINE)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["demo-001"]


def test_what_to_type_next_can_be_typed(tmp_path, monkeypatch):
    """`make demo` leaves no `phalanx` on the path: the first thing to type puts it there."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    assert next_commands(Path("runs/demo-001"))[0] == "phalanx status runs/demo-001"  # no environment to activate
    (tmp_path / "bin" / "activate").touch()
    assert next_commands(Path("runs/demo-001"))[0] == "source bin/activate"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert next_commands(Path("runs/demo-001"))[0] == f"source {tmp_path}/bin/activate"
    (tmp_path / "bin" / "phalanx").touch(mode=0o755)
    assert next_commands(Path("runs/demo-001"))[0] == "phalanx status runs/demo-001"
