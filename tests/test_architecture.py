"""The rules of the house, held by reading every source file: imports, sizes, what the plan half loads."""

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model", "orchestrator", "launch")
"""In the direction of the arrow, backwards: each may import itself and those before it."""
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))

ONLY_IN = {
    "ray": "orchestrator/fleet/raylib.py",
    "deepspeed": "model/engine.py",
    "wandb": "orchestrator/observe/wandb_process.py",
    "hydra": "launch/compose.py",
    "prometheus_client": "orchestrator/observe/prometheus.py",
    "tensorboardX": "orchestrator/observe/tensorboard.py",
    "optuna": "orchestrator/sweep/sampler.py",
    "pynvml": "orchestrator/rank/gpuhealth.py",
}
CALLED_ONLY_IN = {
    **dict.fromkeys(("scontrol", "squeue", "scancel", "sacct"), "launch/slurm/commands.py"),
    "kubectl": "launch/kuberay/kubectl.py",
    "ip": "launch/virtual/network.py",
}
NOT_IN_PLAN_HALF = ("torch", "ray", "deepspeed", "wandb", "hydra", "omegaconf", "optuna", "subprocess")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

PLAN_HALF: list[str] = [
    name
    for name in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["files"]
    if (ROOT / name).is_file()
]


def imported_names(file: Path) -> Iterator[str]:
    """Full names of all that `file` imports, wherever in it: `orchestrator.fleet.cluster`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively"
            yield str(node.module)


def python(script: str) -> subprocess.CompletedProcess[str]:
    """Run `script` in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def test_there_is_something_to_scan() -> None:
    assert len(SOURCES) > 10
    assert len(PLAN_HALF) > 5


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_imports_point_from_launch_to_orchestrator_to_model(file: Path) -> None:
    own = relative(file).split("/")[0]
    backwards = PACKAGES[PACKAGES.index(own) + 1 :]
    wrong = [name for name in imported_names(file) if name.split(".")[0] in (*backwards, "tests", "slurm")]
    assert wrong == []


@pytest.mark.parametrize(("library", "home"), ONLY_IN.items())
def test_only_one_file_imports_an_outside_library(library: str, home: str) -> None:
    importers = [
        relative(file) for file in SOURCES if any(name.split(".")[0] == library for name in imported_names(file))
    ]
    assert set(importers) <= {home}


@pytest.mark.parametrize(("command", "home"), CALLED_ONLY_IN.items())
def test_only_one_file_calls_an_outside_command(command: str, home: str) -> None:
    callers = [
        relative(file)
        for file in SOURCES
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.List | ast.Call)  # the words of a command, or what is called with them
        for first in (call.elts if isinstance(call, ast.List) else call.args)[:1]
        if isinstance(first, ast.Constant) and first.value == command and "which" not in ast.unparse(call)
    ]
    assert set(callers) == {home}


@pytest.mark.parametrize("name", PLAN_HALF)
def test_a_plan_half_module_loads_nothing_heavy(name: str) -> None:
    module = name.removesuffix(".py").replace("/", ".")
    script = f"import sys, {module}; print(*sorted(set({NOT_IN_PLAN_HALF!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("verb", ["plan", "prepare", "submit", "cancel", "list", "cp", "schema"])
def test_help_loads_neither_torch_nor_ray(verb: str) -> None:
    script = (
        f"import sys; from launch.cli import main; code = main([{verb!r}, '--help']); "
        "heavy = {'torch', 'ray', 'deepspeed', 'wandb'} & set(sys.modules); "
        "print('\\nloaded:', *sorted(heavy)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "examples:" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


@pytest.mark.parametrize("name", PLAN_HALF)
def test_the_plan_half_reads_neither_clock_nor_environment(name: str) -> None:
    tops = {imported.split(".")[0] for imported in imported_names(ROOT / name)}
    assert tops & {"time", "os", "subprocess", "socket", "threading", "random"} == set()


def test_no_file_exceeds_its_lines() -> None:
    lengths = {relative(file): len(file.read_text().splitlines()) for file in SOURCES}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_exceeds_its_lines() -> None:
    long = {}
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{relative(file)}:{node.name}"] = lines
    assert long == {}


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    names = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py", "base.py"}
    assert [relative(file) for file in SOURCES if file.name in names] == []


def test_nothing_unpickles_or_calls_a_shell() -> None:
    wrong = []
    for file in SOURCES:
        names = set(imported_names(file))
        if names & {"pickle", "dill", "cloudpickle", "joblib"}:
            wrong.append(relative(file))
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "shell":
                wrong.append(f"{relative(file)}:{node.value.lineno}")
    assert wrong == []


def test_a_command_that_is_printed_quotes_its_paths() -> None:
    """`RunFolder.quoted`, shlex.quote or shlex.join: a person copies what is printed."""
    bare = re.compile(r"(.*\.)?(path|parent|folder|trials|report|source|root|target|path_or_url)|str\(.*\)")
    wrong = []
    for file in SOURCES:
        for text in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.JoinedStr)):
            for before, value in itertools.pairwise(text.values):
                is_command = isinstance(before, ast.Constant) and re.search(r"phalanx [^;,(]*$", str(before.value))
                if is_command and isinstance(value, ast.FormattedValue) and bare.fullmatch(ast.unparse(value.value)):
                    wrong.append(f"{relative(file)}:{value.lineno} {ast.unparse(value.value)}")
    assert wrong == []


def test_no_two_test_files_share_a_name() -> None:
    """pytest imports them by name alone: two of one name can't be collected together."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_every_package_is_installed() -> None:
    """An editable install hides a package that a wheel would lack."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {file.parent.relative_to(ROOT).as_posix().replace("/", ".") for file in SOURCES}
    assert there <= set(listed)
