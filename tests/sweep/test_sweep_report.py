"""The page: whole, self-contained, and drawn from the study."""

import json
from pathlib import Path
from xml.etree import ElementTree

from trials import added, ended, finished_study, judged

from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.report import page, write_report
from orchestrator.sweep.settings import Metric
from orchestrator.sweep.space import Choices, Interval
from orchestrator.sweep.study import Study

SPACE = (Interval("optim.lr", 1e-4, 1e-1, is_log=True), Choices("optim", ("adamw", "<sgd>")))


def study() -> Study:
    made = finished_study(
        {
            f"t{number}": ({"optim.lr": str(10.0**-number), "optim": "adamw" if number % 2 else "<sgd>"}, number / 2)
            for number in range(1, 5)
        }
    )
    for record in (
        added("cut", **{"optim.lr": "0.05", "optim": "adamw"}), judged("cut", 5, 9.0, goes_on=False),
        ended("cut", "pruned", 9.0, 6), added("lost", **{"optim.lr": "0.06", "optim": "adamw"}),
        ended("lost", "failed", None, 0, reason="out of memory"),
    ):  # fmt: skip
        made.apply(record)
    return made


def svgs(text: str) -> list[ElementTree.Element]:
    parts = text.split("<svg")[1:]
    return [ElementTree.fromstring("<svg" + part.partition("</svg>")[0] + "</svg>") for part in parts]


def test_every_plot_shows_every_trial_that_has_a_value() -> None:
    text = page("mine", study(), SPACE, Metric.loss, {"optim.lr": 0.8, "optim": 0.2})
    history, importance, parallel = svgs(text)
    assert len(history.findall("circle")) == 5
    assert len(importance.findall("rect")) == 2
    assert len(parallel.findall("polyline")) == 5
    for svg in (history, parallel):
        for circle in svg.iter("circle"):
            assert 0 <= float(circle.attrib["cy"]) <= 280


def test_the_page_is_self_contained_and_escapes_what_was_typed() -> None:
    text = page("mine", study(), SPACE, Metric.loss, {})
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    assert "<sgd>" not in text
    assert "&lt;sgd&gt;" in text


def test_a_study_without_results_has_a_page() -> None:
    text = page("mine", Study(), SPACE, Metric.loss, {})
    assert svgs(text) == []
    assert "no trial has a value yet" in text


def test_both_files_are_written(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    write_report(folder, study(), SPACE, Metric.loss)
    summary = json.loads(folder.summary.read_text())
    assert summary["best"]["id"] == "t1"
    assert len(summary["trials"]) == 6
    assert folder.report.read_text().startswith("<!doctype html>")
