"""What a person sees of a sweep, on a terminal and elsewhere."""

import io

from observe.step_rows import row as step_row
from trials import added, ended, started

from orchestrator.sweep.settings import Metric
from orchestrator.sweep.study import Study, read_study
from orchestrator.sweep.table import SweepTable
from orchestrator.sweep.wording import HEADER, end_lines, table_row


def going() -> Study:
    return read_study(
        [
            added("a", lr="1"), added("b", lr="2"), added("c", lr="3"), started("a"), started("b"),
            ended("a", "finished", 1.5), ended("c", "failed", None, 0, reason="out of memory"),
        ]
    )  # fmt: skip


def test_plain_lines_say_each_tenth_once() -> None:
    stream = io.StringIO()
    watcher = SweepTable(stream, False, Metric.loss)
    for step in (1, 10, 11, 12, 20):
        watcher.progress(going(), {"b": step_row(step)}, {"b": 100})
    watcher.trial(going().trials["a"], "finished")
    watcher.close()
    lines = stream.getvalue().splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["b: step 10/100", "b: step 20/100", "a finished"]
    assert lines[-1] == "a finished | loss 1.5000 | lr=1"


def test_a_terminal_shows_a_table_of_what_goes_on_and_what_has_ended() -> None:
    stream = io.StringIO()
    watcher = SweepTable(stream, True, Metric.loss)
    watcher.progress(going(), {"b": step_row(40)}, {"b": 100})
    watcher.close()
    watcher.close()
    text = stream.getvalue()
    assert "3 trials: 1 running, 1 finished, 1 failed" in text
    assert "40/100" in text
    assert "lr=3" in text


def test_a_closed_pipe_silences_the_table_and_not_the_sweep() -> None:
    stream = io.StringIO()
    watcher = SweepTable(stream, False, Metric.loss)
    stream.close()
    watcher.note("nobody reads this")
    watcher.progress(going(), {"b": step_row(40)}, {"b": 100})


def test_a_running_trial_shows_its_newest_step_and_the_time_left() -> None:
    row = step_row(40)
    cells = table_row(going().trials["b"], Metric.loss, row, 100)
    assert cells[:4] == ("b", "running", "40/100", f"{row.loss:.4f}")
    assert cells[4] != "-"
    assert len(cells) == len(HEADER)


def test_the_end_has_the_best_override_line_and_why_others_failed() -> None:
    lines = end_lines(going(), Metric.loss, ["model=tiny", "data.path=my data"], {"report": "x.html"})
    assert "best        a: loss 1.5000 after step 20" in lines
    assert "overrides   lr=1" in lines
    assert "again       phalanx train model=tiny 'data.path=my data' lr=1" in lines
    assert "failed      c: out of memory" in lines
    assert lines[-1] == "report      x.html"
