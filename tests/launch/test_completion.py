"""What a tab offers, asked of the shells themselves where they are there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch import cli
from launch.completion import SCRIPTS, TAKES_RUN, candidates


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("phalanx tr", ["train"]),
        ("phalanx re", ["report", "rerun"]),
        ("phalanx train experiment=q", ["experiment=quickstart"]),
        ("phalanx train a=1 optim.warm", ["optim.warmup_steps="]),
        ("phalanx train train.precision=", ["train.precision=bf16", "train.precision=fp16", "train.precision=fp32"]),
        ("phalanx plan tracking.tensorboard=", ["tracking.tensorboard=false", "tracking.tensorboard=true"]),
        ("phalanx sweep model=gpt_13", ["model=gpt_13b"]),
        ("phalanx plan --js", ["--json"]),
        ("phalanx report ", ["first", "second"]),
        ("phalanx logs --root runs fi", ["first"]),
        ("phalanx list ", ["clusters", "experiments", "models", "runs"]),
        ("phalanx cp experiment/qu", ["experiment/quickstart"]),
        ("phalanx completion z", ["zsh"]),
        ("phalanx nothing ", []),
        ("phalanx train optim.lr=", []),
    ],
)
def test_candidates(runs: Path, line: str, expected: list[str]) -> None:
    assert candidates(line) == expected


def test_every_verb_is_offered_and_those_with_runs_exist() -> None:
    assert set(cli.VERBS) < set(candidates("phalanx "))
    assert set(cli.VERBS) > TAKES_RUN


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A `phalanx` that is this one."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/phalanx"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launch.cli "$@"\n')
    script.chmod(0o755)
    root = str(Path(cli.__file__).parent.parent)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": root, "HOME": str(tmp_path)}


def asked(shell: str, text: str, environment: dict[str, str]) -> list[str]:
    if shutil.which(shell) is None:
        assert os.environ.get("PHALANX_REQUIRE_SHELLS") != "1", f"no {shell} on the path"
        pytest.skip(f"no {shell} on the path")
    done = subprocess.run([shell, "-c", text], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "expected"),
    [("phalanx tr", ["train"]), ("phalanx train experiment=q", ["quickstart"]), ("phalanx report f", ["first"])],
)
def test_bash_is_offered_what_follows_the_equals_sign(
    runs: Path, environment: dict[str, str], line: str, expected: list[str]
) -> None:
    text = f"""{SCRIPTS["bash"]}
        COMP_LINE={line!r} COMP_POINT={len(line)}
        _phalanx; printf '%s\\n' "${{COMPREPLY[@]}}" """
    assert asked("bash", text, environment) == expected


def test_fish_is_offered_whole_words(runs: Path, environment: dict[str, str]) -> None:
    text = f"{SCRIPTS['fish']}\ncomplete -C 'phalanx train experiment=q'"
    assert asked("fish", text, environment) == ["experiment=quickstart"]


def test_zsh_reads_its_script(runs: Path, environment: dict[str, str]) -> None:
    text = f"""compdef() {{ }}; compadd() {{ shift 4; print -l -- $@ }}
        {SCRIPTS["zsh"]}
        words=(phalanx train experiment=q); CURRENT=3; _phalanx"""
    assert asked("zsh", text, environment) == ["experiment=quickstart"]


def test_the_scripts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, script in SCRIPTS.items():
        assert cli.main(["completion", shell]) == 0
        assert capsys.readouterr().out == script
    assert cli.main(["completion", "tcsh"]) == 2
