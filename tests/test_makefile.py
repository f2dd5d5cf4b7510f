"""The Makefile and what CI runs, without installing anything: `make -n`, what would be done."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = dict(re.findall(r"^([A-Za-z0-9_.\-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def planned(*words: str) -> str:
    """What `make` would do, every stage from the beginning."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", "-n", "-B", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_demo_installs_torch_first_and_alone_then_the_rest() -> None:
    steps = planned("demo")
    torch, rest, demo = (steps.index(words) for words in ("torch==2.13.0", "-e .", ".venv/bin/phalanx demo"))
    assert torch < rest < demo
    assert "[test]" not in steps


def test_lint_does_not_mind_what_the_demo_leaves_here(tmp_path: Path) -> None:
    """prepared/ has the name of a module of the tests: it must not be taken for a package of ours."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "tests/data", tmp_path / "tests/data", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("prepared", "runs"):
        (tmp_path / name / "demo").mkdir(parents=True)
    words = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "I", "."]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_test_belongs_to_exactly_one_stage() -> None:
    marks = re.findall(r"pytest.* -m '([^']+)'", planned("test"))
    for real in (False, True):
        for cluster in (False, True):
            for soak in (False, True):
                names = {"real": real, "cluster": cluster, "soak": soak}
                stages = [mark for mark in marks if eval(mark, {}, names)]
                assert len(stages) == (0 if soak else 1), names


@pytest.mark.parametrize("target", ["help", "demo", "test", "lint", "soak", "bench", "clean"])
def test_target_exists_and_is_in_help(target: str) -> None:
    planned(target)
    help_text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^make {target}\s+\S", help_text, re.MULTILINE)


def test_without_a_python_one_sentence(tmp_path: Path) -> None:
    copy = tmp_path / "Makefile"
    copy.write_text((ROOT / "Makefile").read_text())
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    refused = subprocess.run(
        ["make", "install", "PYTHON="], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "no Python 3.11 or 3.12 with venv was found" in refused.stderr
    assert not (tmp_path / ".venv").exists()


def test_clean_spares_what_people_made() -> None:
    assert not re.search(r"\b(runs|prepared)\b", planned("clean"))


def test_constraints_name_every_direct_dependency_once_and_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {normal(re.match(r"[A-Za-z0-9_.\-]+", line)[0]) for line in wanted}
    assert names <= {normal(name) for name in CONSTRAINTS}
    assert CONSTRAINTS["torch"] == "2.13.0"
    assert "torch==2.13.0" in project["dependencies"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(CONSTRAINTS) == len({normal(name) for name in CONSTRAINTS})


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert "exec make --keep-going test\n" in script.read_text()


def test_ci_never_skips_the_tests_on_several_hosts() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "export PHALANX_REQUIRE_CLUSTER=1" in script
    assert "apt-get install -y -qq --no-install-recommends slurm-wlm munge iproute2" in script


def test_ci_draws_the_same_examples_each_time() -> None:
    assert "export CI=true\n" in (ROOT / ".ci" / "run").read_text()
