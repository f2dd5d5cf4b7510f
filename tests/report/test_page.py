"""report.html and report.md of every kind of run."""

import fcntl
import json
import os
from pathlib import Path

import pytest
from golden_texts import check_golden
from pages import check_page
from synthetic import BEGUN_S, Writer, disturbed_run, step_row

from launch.compose import compose
from orchestrator.codec import encode
from orchestrator.observe.metrics import MetricsLog
from orchestrator.plan import plan_run
from orchestrator.report.markdown import markdown
from orchestrator.report.page import page
from orchestrator.report.writing import read_record, write_report
from orchestrator.runfolder import RunFolder

TWO_MB = 2 * 2**20


@pytest.fixture
def disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """120 steps, two kills, as `phalanx train experiment=quickstart train.steps=120 optim.lr=2e-3` leaves them."""
    monkeypatch.chdir(tmp_path)
    words = ["experiment=quickstart", "train.steps=120", "optim.lr=2e-3"]
    config, recipe = compose(words).config, compose(words[:1]).config
    plan = plan_run(config, None, device="cpu")
    folder = disturbed_run(Path("runs/demo"), 120, every=50, plan=plan, config=encode(config))
    folder.recipe.write_text(json.dumps(encode(recipe)))
    folder.overrides.write_text(json.dumps(words))
    git = {"commit": "0123abcd", "branch": "main", "is_dirty": True}
    folder.env.write_text(
        json.dumps({"host": "node7", "python": "3.11.7", "git": git, "versions": {"torch": "2.13"}})
    )
    return folder


def test_the_text_of_a_disturbed_run(disturbed: RunFolder) -> None:
    check_golden("report_disturbed.md", markdown(read_record(disturbed, BEGUN_S + 500)))


def test_the_page_of_a_disturbed_run(disturbed: RunFolder) -> None:
    text = page(read_record(disturbed, BEGUN_S + 500))
    check_page(text)
    assert text.count('class="mark failure"') == 4  # two kills, in two plots
    assert text.count('id="fault-') == 2
    for words in ("train.steps", "optim.lr", "0123abcd", "not committed", "1.25s", "phalanx generate runs/demo"):
        assert words in text


def test_a_submitted_run_goes_on_by_submit(disturbed: RunFolder) -> None:
    disturbed.slurm.mkdir()
    disturbed.jobs.write_text('{"job_id": 7, "time_s": 0.0}\n')
    disturbed.events.write_text("".join(disturbed.events.read_text().splitlines(keepends=True)[:-1]))
    text = page(read_record(disturbed, BEGUN_S + 500))
    assert text.count("phalanx submit experiment=quickstart train.steps=120 optim.lr=2e-3") == 2, (
        "typed, and to go on"
    )


def test_both_files_are_written(disturbed: RunFolder) -> None:
    path = write_report(disturbed, is_at_end=True)
    assert path == disturbed.path / "report.html"
    check_page(path.read_text())
    assert (disturbed.path / "report.md").read_text().startswith("# demo: finished\n")


@pytest.mark.parametrize(
    "name", ["events.jsonl", "metrics.jsonl", "plan.json", "config.yaml", "env.json", "overrides.yaml"]
)
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage"])
def test_what_a_folder_lacks_is_left_out(disturbed: RunFolder, name: str, damage: str) -> None:
    file = disturbed.path / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_text("" if damage == "empty" else '{"a": [1, 2\n\0{}\n[]\n"text"\n')
    record = read_record(disturbed, BEGUN_S)
    check_page(page(record))
    assert markdown(record).startswith("# demo: ")


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    record = read_record(RunFolder(tmp_path / "new"), BEGUN_S)
    check_page(page(record))
    assert "Nothing was recorded." in page(record)
    assert "nothing was recorded" in markdown(record)


def test_a_run_that_goes_on_and_one_that_failed(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "runs/going")
    writer.event("run_started", 0, 0, driver_started_s=BEGUN_S)
    writer.event("attempt_started", 1, 0, resume_step=0, world_size=2)
    writer.rows([step_row(step) for step in range(1, 31)])
    descriptor = os.open(writer.folder.lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    going = page(read_record(writer.folder, BEGUN_S + 60))
    os.close(descriptor)
    check_page(going)
    assert '<span class="state running">' in going
    assert '<span class="state interrupted">' in page(read_record(writer.folder, BEGUN_S + 60))

    writer.event("rank_died", 1, 30, rank=0, node="here", exit_code=1, message="OSError: No space left on device")
    writer.event(
        "run_failed", 1, 30, rank=0, digest="rank 0 on here failed first <script>alert(1)</script>\nnext: free some"
    )
    writer.close()
    failed = page(read_record(writer.folder, BEGUN_S + 90))
    check_page(failed)
    assert "Why it failed" in failed
    assert "&lt;script&gt;" in failed
    assert "phalanx logs" in failed


def test_odd_numbers_break_the_line_and_nothing_else(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "runs/odd")
    writer.event("attempt_started", 1, 0, resume_step=0)
    losses = {10: float("nan"), 11: float("inf"), 20: 1e30}
    log = MetricsLog(writer.folder.metrics)
    for step in range(1, 41):
        log.append(
            step_row(step, loss=losses.get(step, 3.0), grad_norm=losses.get(step, 1.0), tokens_per_s=0.0, step_s=0.0)
        )
    log.close()
    writer.close()
    text = page(read_record(writer.folder, BEGUN_S + 60))
    check_page(text)
    assert text.count('class="odd"') == 4  # two steps, in two plots
    assert "to 1e+30" in text


def test_thousands_of_failures_and_of_checkpoints(tmp_path: Path) -> None:
    folder = disturbed_run(tmp_path / "runs/stormy", 20_000, every=4)
    write_report(folder)
    text = folder.report.read_text()
    check_page(text)
    assert len(text) < TWO_MB
    assert text.count('id="fault-') == 50
    assert "The 50 costliest of" in text


@pytest.mark.parametrize("steps", [50_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_a_long_run_is_a_small_page_in_which_a_spike_survives(tmp_path: Path, steps: int) -> None:
    writer = Writer(tmp_path / "runs/long")
    writer.event("attempt_started", 1, 0, resume_step=0)
    writer.rows(step_row(step, loss=99.0 if step == 12_345 else 2.0) for step in range(1, steps + 1))
    writer.close()
    write_report(writer.folder)
    text = writer.folder.report.read_text()
    check_page(text)
    assert len(text) < TWO_MB
    assert 'aria-label="Loss, from 2 to 99"' in text
