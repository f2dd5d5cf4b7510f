import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_rows import row

from orchestrator.observe.metrics import MetricsLog, read_last_rows, read_rows, surviving_rows

CONTRACT = {
    "step",
    "attempt",
    "loss",
    "lr",
    "grad_norm",
    "tokens",
    "tokens_per_s",
    "step_s",
    "data_s",
    "batch_digest",
}


def written(path: Path, *rows):
    log = MetricsLog(path)
    for each in rows:
        log.append(each)
    log.close()
    return path


def test_a_row_has_the_contract_s_fields_and_no_empty_ones(tmp_path):
    path = written(tmp_path / "metrics.jsonl", row(1), row(2, mfu=0.4, memory_bytes=1, eval_loss=3.0))
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first.keys() == CONTRACT
    assert second.keys() == CONTRACT | {"mfu", "memory_bytes", "eval_loss"}


@given(loss=st.floats(), grad_norm=st.floats(), mfu=st.none() | st.floats(0, 1))
def test_what_is_written_is_read_again_also_where_json_has_no_number_for_it(tmp_path_factory, loss, grad_norm, mfu):
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    (again,) = read_rows(written(path, row(1, loss=loss, grad_norm=grad_norm, mfu=mfu)))
    assert repr(again) == repr(row(1, loss=loss, grad_norm=grad_norm, mfu=mfu))


def test_nan_is_null_for_other_readers(tmp_path):
    path = written(tmp_path / "metrics.jsonl", row(1, loss=math.nan))
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["loss"] is None


def test_after_a_rollback_the_newest_attempt_s_row_counts(tmp_path):
    path = written(
        tmp_path / "metrics.jsonl",
        *(row(step, 1) for step in (1, 2, 3, 4)),
        *(row(step, 2, loss=9.0) for step in (3, 4, 5)),
        row(5, 1, loss=1.0),  # a late row of the attempt that was given up
    )
    counted = surviving_rows(path)
    assert [(step, kept.attempt) for step, kept in counted.items()] == [
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 2),
        (5, 2),
    ]
    assert counted[5].loss == 9.0
    assert len(read_rows(path)) == 8


def test_a_torn_line_and_fields_of_a_newer_version_do_no_harm(tmp_path):
    path = written(tmp_path / "metrics.jsonl", row(1), row(2))
    os.truncate(path, path.stat().st_size - 20)
    assert [kept.step for kept in read_rows(path)] == [1]
    newer = json.dumps(json.loads(path.read_text().splitlines()[0]) | {"step": 4, "joules": 3})
    written(path, row(3))
    with path.open("a") as file:
        file.write(newer + "\n")
    assert [kept.step for kept in read_rows(path)] == [1, 3, 4]


@pytest.mark.parametrize("count", [1, 7, 100, 1000])
def test_the_last_rows_without_the_rest(tmp_path, count):
    path = written(tmp_path / "metrics.jsonl", *(row(step) for step in range(1, 301)))
    assert read_last_rows(path, count) == read_rows(path)[-count:]
