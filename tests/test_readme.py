"""The README's commands are run as they stand there, so they can't rot."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PHALANX = str(Path(sys.executable).with_name("phalanx"))
BLOCK = re.compile(r"(?:<!-- run: (?P<how>[a-zA-Z ]+) -->\n)?```bash\n(?P<lines>.*?)^```$", re.MULTILINE | re.DOTALL)
SHORTER = {
    "prepare": ["data.source={library}/json/*.py", "data.vocab_size=384", "data.validation_fraction=0.3"],
    "train": ["train.steps=4", "train.seq_len=32", "checkpoint.every_steps=2", "tracking.wandb.mode=offline"],
}
"""Added to the commands that would take a minute: the same commands on less."""


def commands(how: str | None) -> list[list[str]]:
    """The README's command lines in bash blocks with a mark of that kind (None: without one)."""
    blocks = [block for block in BLOCK.finditer((ROOT / "README.md").read_text()) if block["how"] == how]
    return [shlex.split(line) for block in blocks for line in block["lines"].splitlines()]


def phalanx(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    assert words[0] == "phalanx"
    return subprocess.run([PHALANX, *words[1:]], cwd=folder, capture_output=True, text=True, check=False)


def test_every_marked_block_has_a_test() -> None:
    marks = [block["how"] for block in BLOCK.finditer((ROOT / "README.md").read_text())]
    assert {*marks} == {None, "at once", "with Ray", "refused"}


def test_commands_that_start_nothing(tmp_path: Path) -> None:
    for words in commands("at once"):
        done = phalanx(words, tmp_path)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
        assert done.stdout.strip() or words[1] == "cp"
    assert (tmp_path / "my_conf/experiment/books.yaml").is_file()
    assert not (tmp_path / "runs").exists()


def test_commands_that_are_refused(tmp_path: Path) -> None:
    refusals = []
    for words in commands("refused"):
        done = phalanx(words, tmp_path)
        assert done.returncode == 2, shlex.join(words)
        refusals.append(done.stderr)
    assert f"```\n{refusals[0]}```" in (ROOT / "README.md").read_text()
    assert "did you mean gpt_125m?" in refusals[1]
    assert "needs 181.8 GB per rank" in refusals[2]


@pytest.mark.real
def test_first_steps_on_real_processes(tmp_path: Path) -> None:
    library = Path(shlex.__file__).parent
    for words in commands("with Ray"):
        more = [word.format(library=library) for word in SHORTER.get(words[1], [])]
        done = phalanx([*words, *more], tmp_path)
        assert done.returncode == 0, f"{shlex.join([*words, *more])}: {done.stdout}{done.stderr}"
    assert (tmp_path / "runs/first/checkpoints/step_00000004/COMMITTED.json").is_file()
    assert (tmp_path / "exported/model.safetensors").is_file()


def test_the_verbs_table_is_complete() -> None:
    from launch.cli import VERBS

    table = (ROOT / "README.md").read_text().partition("## Verbs")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {words.split()[0] for row in rows for words in re.findall(r"`([^`]+)`", row)}
    assert named - {"verify", "prune"} == set(VERBS)


def test_the_layout_table_names_folders_that_exist() -> None:
    table = (ROOT / "README.md").read_text().partition("## Layout")[2].partition("\n## ")[0]
    folders = re.findall(r"^\| `([a-z]+)/`", table, re.MULTILINE)
    assert len(folders) == 7
    assert all((ROOT / folder).is_dir() for folder in folders)
