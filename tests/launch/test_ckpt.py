import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "checkpoint"))

from saving import flip_byte, random_state, save, write

from launch.ckpt import run
from orchestrator.checkpoint.commit import committed_steps, set_aside
from orchestrator.checkpoint.reader import CheckpointReader
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import logical_digest
from orchestrator.observe.units import bytes_text

STATE = random_state({"w": (500,), "b": (3,)})


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "runs" / "tiny-1"
    store = Store(folder / "checkpoints")
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("checkpoint: {url: null, keep_last: 2}\n")
    save(store, 10, STATE, world_size=1, loss=3.25)
    save(store, 20, STATE, world_size=3, attempt=2, zero_stage=3, loss=math.nan)
    save(store, 30, STATE, world_size=2, attempt=2)
    write(store, 40, STATE, attempt=2)
    return tmp_path / "runs"


def store_of(root) -> Store:
    return Store(root / "tiny-1" / "checkpoints")


def file_of(root, step) -> Path:
    return next((root / "tiny-1" / "checkpoints" / f"step_{step:08d}").glob("rank_00000*"))


def ckpt(root, verb, *arguments):
    return run([verb, "tiny-1", "--root", str(root), *arguments])


def test_ls_shows_each_checkpoint(root, capsys):
    set_aside(store_of(root), 30, "its checksum is wrong")
    assert ckpt(root, "ls") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "age", "size", "files", "world", "stage", "attempt", "loss", "state"]
    cells = lines[1].split()
    assert cells[0] == "10"
    assert re.fullmatch(r"\d+d\d\dh", cells[1])
    assert cells[2:4] == bytes_text(file_of(root, 10).stat().st_size).split()
    assert cells[4:] == ["1", "1", "1", "1", "3.2500", "committed"]
    assert lines[2].split()[-6:] == ["3", "3", "3", "2", "-", "committed"]
    assert lines[3].endswith("2.5000  rejected: its checksum is wrong")
    assert lines[4].split() == ["40", *"-------", "torn"]


def test_ls_json(root, capsys):
    assert ckpt(root, "ls", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [(row["step"], row["state"]) for row in rows] == [
        (10, "committed"), (20, "committed"), (30, "committed"), (40, "torn"),
    ]  # fmt: skip
    assert rows[1]["world_size"] == 3
    assert rows[1]["zero_stage"] == 3
    assert rows[1]["loss"] is None
    assert rows[0]["bytes"] == file_of(root, 10).stat().st_size


def test_ls_names_a_damaged_marker(root, capsys):
    flip_byte(root / "tiny-1/checkpoints/step_00000020/COMMITTED.json", 9)
    assert ckpt(root, "ls") == 0
    assert "damaged: " in capsys.readouterr().out.splitlines()[2]


def test_verify_reads_all_and_prints_the_digest_last(root, capsys):
    assert ckpt(root, "verify", "--digest") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.endswith("good") for line in lines[:3])
    assert lines[3] == logical_digest(CheckpointReader.open(str(root / "tiny-1/checkpoints/step_00000030")))


def test_the_digest_is_the_same_for_every_world_size(root, capsys):
    digests = set()
    for step in (10, 20, 30):
        assert run(["verify", str(root / f"tiny-1/checkpoints/step_{step:08d}"), "--digest"]) == 0
        digests.add(capsys.readouterr().out.splitlines()[-1])
    assert len(digests) == 1
    assert len(digests.pop()) == 32


def test_verify_names_every_damage_and_exits_1(root, capsys):
    flip_byte(file_of(root, 10), 500)
    file_of(root, 20).unlink()
    assert ckpt(root, "verify", "--digest") == 1
    out = capsys.readouterr().out
    assert f"{file_of(root, 10)} is damaged" in out
    assert "step_00000020/rank_00000.attempt_002.safetensors is missing" in out
    assert len(out.splitlines()[-1]) == 32  # step 30 is sound
    assert ckpt(root, "verify", "--step", "30") == 0
    assert ckpt(root, "verify", "--step", "20") == 1
    assert ckpt(root, "verify", "--step", "40") == 1
    assert "step 40 was never committed" in capsys.readouterr().out


def test_verify_json(root, capsys):
    flip_byte(file_of(root, 10), 500)
    assert ckpt(root, "verify", "--json", "--digest") == 1
    raw = json.loads(capsys.readouterr().out)
    assert [len(item["problems"]) for item in raw["checkpoints"]] == [1, 0, 0]
    assert len(raw["digest"]) == 32


def test_no_digest_of_a_damaged_step(root, capsys):
    flip_byte(file_of(root, 30), 500)
    assert ckpt(root, "verify", "--step", "30", "--digest") == 1
    assert "damaged" in capsys.readouterr().out.splitlines()[-1]


def test_a_folder_of_checkpoints_is_a_name_too(root, capsys):
    assert run(["ls", str(root / "tiny-1" / "checkpoints")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_prune_takes_the_configs_count(root, capsys):
    assert ckpt(root, "prune", "--dry-run") == 0
    assert capsys.readouterr().out == f"would delete {root}/tiny-1/checkpoints/step_00000010\n"
    assert committed_steps(store_of(root)) == [10, 20, 30]
    assert ckpt(root, "prune", "--keep", "1") == 0
    assert committed_steps(store_of(root)) == [30]
    assert ckpt(root, "prune") == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_prune_deletes_nothing_where_nothing_good_would_stay(root, capsys):
    """Sizes don't tell: every byte of what stays is read."""
    for step in (20, 30):
        flip_byte(file_of(root, step), file_of(root, step).stat().st_size - 1)
    for words in ((), ("--dry-run",)):
        assert ckpt(root, "prune", *words) == 1
        assert "of what would stay, nothing is good" in capsys.readouterr().err
    assert committed_steps(store_of(root)) == [10, 20, 30]
    assert ckpt(root, "prune", "--keep", "3") == 0
    flip_byte(file_of(root, 20), file_of(root, 20).stat().st_size - 1)
    assert ckpt(root, "prune") == 0
    assert committed_steps(store_of(root)) == [20, 30]


def test_bad_arguments_exit_2(root, capsys):
    assert run(["ls", "tiny-2", "--root", str(root)]) == 2
    assert "did you mean tiny-1" in capsys.readouterr().err
    for name in ("x" * 5000, "tiny-1/config.yaml"):
        assert run(["ls", name, "--root", str(root)]) == 2
        assert "is not known" in capsys.readouterr().err
    assert run(["prune", str(root / "tiny-1/checkpoints/step_00000010")]) == 2
    for arguments in ([], ["nosuch"], ["prune", "tiny-1", "--keep", "0"]):
        with pytest.raises(SystemExit) as caught:
            run(arguments)
        assert caught.value.code == 2


def test_a_run_without_checkpoints(tmp_path, capsys):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "plan.json").write_text("{}")
    assert run(["ls", "new", "--root", str(tmp_path)]) == 0
    assert "holds no checkpoints" in capsys.readouterr().out
    assert run(["verify", "new", "--root", str(tmp_path)]) == 1
    assert "holds no committed checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [[], ["ls"], ["verify"], ["prune"]])
def test_help_has_examples(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        run([*verb, "--help"])
    assert caught.value.code == 0
    assert "phalanx ckpt" in capsys.readouterr().out.partition("example")[2]


def test_torch_and_ray_are_not_imported():
    code = "import sys, launch.ckpt; print({'torch', 'ray', 'deepspeed', 'fsspec'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.strip() == "set()"
