"""The commands in docs/: verbs that there are, with keys and choices that there are."""

import re
import shlex
from pathlib import Path

import pytest

from launch.cli import VERBS
from launch.compose import compose

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = [
    (page.name, line)
    for page in sorted((ROOT / "docs").glob("*.md"))
    for block in BLOCK.findall(page.read_text())
    for line in block.splitlines()
    if line.startswith("phalanx ")
]


def test_there_are_some() -> None:
    assert len([line for page, line in COMMANDS if page == "quickstart.md"]) > 8


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_names_what_there_is(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, verb, *words = shlex.split(line, comments=True)
    assert verb in VERBS, page
    is_plain = not {"--config-dir", "-m"} & {*words} and "..." not in line
    if VERBS[verb].takes_config and is_plain:
        compose([word for word in words if "=" in word and not word.startswith("-")])
