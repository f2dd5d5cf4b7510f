"""The report of a real run, which its driver wrote at the end."""

import json
from pathlib import Path

import pytest
import yaml
from browser import hosts_of_page, need_chromium
from pages import check_page
from typed import Run, Typist

pytestmark = pytest.mark.real


def test_the_driver_has_written_it(reference: Run) -> None:
    folder = reference.folder
    text = folder.report.read_text()
    check_page(text)
    assert '<span class="state finished">' in text
    assert "Nothing went wrong." in text
    assert len(reference.rows()) == 60
    assert "# " + folder.run_id in folder.report_md.read_text()


def test_it_knows_the_commit_and_the_recipe(reference: Run) -> None:
    folder = reference.folder
    assert {"folder", "git", "command"} <= json.loads(folder.env.read_text()).keys()
    recipe, config = (yaml.safe_load(path.read_text()) for path in (folder.recipe, folder.config))
    assert recipe["model"] == config["model"]
    assert recipe["train"]["steps"] != config["train"]["steps"]
    assert f"<td>{config['train']['steps']}</td>" in folder.report.read_text()


def test_the_verb_writes_it_anew_and_prints_its_path(reference: Run, typist: Typist) -> None:
    before = reference.folder.report.read_text()
    reference.folder.report.unlink()
    driver = typist.type("report", str(reference.folder.path))
    assert driver.wait() == 0
    assert driver.output == f"{reference.folder.report}\n"
    again = reference.folder.report.read_text()
    assert again.partition("<footer>")[0] == before.partition("<footer>")[0]


def test_a_rerun_reads_the_same_samples_as_a_new_run(reference: Run, typist: Typist) -> None:
    driver = typist.type("rerun", str(reference.folder.path), f"run.root={typist.scratch / 'again'}", "train.steps=3")
    assert driver.wait() == 0, driver.error_output
    again = Run(typist.scratch / "again")
    assert again.folder.run_id == f"{reference.folder.run_id}-2"
    assert [row.batch_digest for row in again.rows().values()] == [
        row.batch_digest for row in list(reference.rows().values())[:3]
    ]


def test_it_asks_no_network(reference: Run, tmp_path: Path) -> None:
    need_chromium()
    assert hosts_of_page(reference.folder.report, tmp_path / "blank.html") == set()
