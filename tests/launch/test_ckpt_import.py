import base64
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from trained_run import write_data, write_run

from launch.ckpt import run
from launch.export import run as export_hugging_face
from model.config import ModelConfig
from model.sizing import parameter_shapes, resolve_vocab
from orchestrator.checkpoint.commit import committed_steps
from orchestrator.checkpoint.key import KEY_VARIABLE
from orchestrator.checkpoint.reader import CheckpointReader, read_marker
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import logical_digest, verify
from orchestrator.codec import decode, encode
from orchestrator.config import CheckpointConfig
from orchestrator.control.initial import check_start, initial_point
from orchestrator.errors import CheckpointError, CheckpointKeyError, CheckpointMismatchError

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    manifest = write_data(root / "data")
    return write_run(root / "runs", "source", root / "data", manifest, steps=[4])


def opened(store_path: Path, step: int) -> CheckpointReader:
    store = Store(store_path)
    assert verify(store, step) == []
    return CheckpointReader(store, read_marker(store, step))


def test_export_to_hugging_face_and_import_are_inverse(trained, tmp_path, capsys):
    assert export_hugging_face([str(trained.path), str(tmp_path / "hf")]) == 0
    assert run(["import", str(tmp_path / "hf"), "--run", "next", "--root", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert f"checkpoint.init_from={tmp_path}/runs/next/imported" in said
    assert "model.hidden_size=" in said
    reader, source = opened(tmp_path / "runs/next/imported", 0), opened(trained.checkpoints, 4)
    assert logical_digest(reader) == logical_digest(source)
    assert reader.marker.run_id == "next"


def test_plain_export_and_import_are_inverse_with_moments(tmp_path, capsys):
    reader = with_moments(tmp_path)
    assert run(["export", str(tmp_path / "source"), str(tmp_path / "plain"), "--optimizer"]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    from safetensors.numpy import load_file

    masters, moments = (load_file(tmp_path / "plain" / f"{name}.safetensors") for name in ("model", "optimizer"))
    for name, shape in reader.shapes.items():
        assert masters[name].shape == shape
        assert np.array_equal(masters[name].reshape(-1), reader.read(name))
        assert np.array_equal(moments[f"exp_avg_sq/{name}"].reshape(-1), reader.read(name, "exp_avg_sq"))
    assert json.loads((tmp_path / "plain" / "checkpoint.json").read_text())["step"] == 9
    assert run(["import", str(tmp_path / "plain"), "--to", str(tmp_path / "again")]) == 0
    assert logical_digest(opened(tmp_path / "again", 9)) == logical_digest(reader)
    assert run(["import", str(tmp_path / "plain"), "--to", str(tmp_path / "fresh"), "--step", "0"]) == 0
    fresh = opened(tmp_path / "fresh", 0)
    assert {fresh.kinds(name) for name in fresh.shapes} == {("master",)}


def with_moments(tmp_path) -> CheckpointReader:
    from saving import random_state, save

    config = tiny()
    state = random_state(parameter_shapes(config))
    store = Store(tmp_path / "source")
    return CheckpointReader(store, save(store, 9, state, model=encode(config), seq_len=8))


def tiny() -> ModelConfig:
    from launch.compose import compose

    words = ["model=tiny", "model.vocab_size=300", "model.num_layers=2", "model.max_seq_len=16"]
    return resolve_vocab(compose(words).config.model, None)


def test_an_exports_folder_with_files_is_left_alone(tmp_path, capsys):
    with_moments(tmp_path)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "mine").write_text("x")
    assert run(["export", str(tmp_path / "source"), str(tmp_path / "plain")]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "plain").iterdir()] == ["mine"]


def test_encrypted_import_export_and_a_missing_key(tmp_path, capsys, monkeypatch):
    reader = with_moments(tmp_path)
    assert run(["export", str(tmp_path / "source"), str(tmp_path / "plain")]) == 0
    secret = base64.b64encode(os.urandom(32)).decode()
    monkeypatch.setenv(KEY_VARIABLE, secret)
    command = ["import", str(tmp_path / "plain"), "--to", str(tmp_path / "safe"), "--encrypt"]
    assert run(command) == 0
    assert run(command) == 2
    assert "is there already" in capsys.readouterr().err
    safe = opened(tmp_path / "safe", 9)
    assert np.array_equal(safe.read("embedding.weight"), reader.read("embedding.weight"))
    assert run(["verify", str(tmp_path / "safe"), "--digest"]) == 0
    monkeypatch.delenv(KEY_VARIABLE)
    assert run(["verify", str(tmp_path / "safe")]) == 0
    capsys.readouterr()
    assert run(["export", str(tmp_path / "safe"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "is encrypted; set PHALANX_CHECKPOINT_KEY" in error
    assert secret not in error


def test_init_from_is_where_a_run_starts(tmp_path):
    with_moments(tmp_path)
    config = CheckpointConfig(init_from=str(tmp_path / "source"))
    point = initial_point(config, tiny())
    assert (point.step, point.source, point.is_initial) == (9, "disk", True)
    assert initial_point(CheckpointConfig(), tiny()).source == "start"
    check_start(config, tiny(), str(tmp_path / "own"))
    with pytest.raises(
        CheckpointMismatchError, match=r"does not fit the run's model: blocks\.1\..* is not part"
    ) as caught:
        check_start(config, replace(tiny(), num_layers=1), str(tmp_path / "own"))
    assert caught.value.exit_code == 2
    with pytest.raises(CheckpointMismatchError, match="holds no committed checkpoint"):
        check_start(CheckpointConfig(init_from=str(tmp_path / "nosuch")), tiny(), str(tmp_path / "own"))
    with pytest.raises(CheckpointKeyError, match="needs a key"):
        check_start(CheckpointConfig(encrypt=True), tiny(), str(tmp_path / "own"))
    payload = next((tmp_path / "source" / "step_00000009").glob("rank_00000*"))
    payload.write_bytes(payload.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="is damaged"):
        initial_point(config, tiny())
    assert committed_steps(Store(tmp_path / "source")) == [9], "somebody else's is not set aside"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nosuch", "--run", "x"], "nosuch is not a folder"),
        ([".", "--run", "x", "--step", "-1"], "--step=-1 is negative"),
        (["."], "say where the checkpoint goes"),
        (["EMPTY", "--run", "x"], "is not a folder that can be imported"),
    ],
)
def test_bad_arguments_exit_2(words, sentence, tmp_path, capsys):
    words = [str(tmp_path) if word == "EMPTY" else word for word in words]
    assert run(["import", *words, "--root", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err


@pytest.fixture(scope="module", params=[(1, 2, "fp32"), (2, 1, "bf16"), (2, 3, "fp32"), (3, 2, "fp32")])
def deepspeed_folder(request, tmp_path_factory):
    """A checkpoint that DeepSpeed wrote: (stage, world size, precision)."""
    stage, world_size, precision = request.param
    folder = tmp_path_factory.mktemp("deepspeed")
    (folder / "model.json").write_text(json.dumps(encode(tiny())))
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = [sys.executable, str(HERE / "deepspeed_saver.py"), str(folder), str(stage), precision]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(HERE.parent.parent)}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world_size), str(server.port)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    said = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world_size, said[0][-3000:]
    return folder, stage, world_size


@pytest.mark.real
def test_deepspeeds_own_checkpoint_is_imported_bit_for_bit(deepspeed_folder, tmp_path, capsys):
    folder, stage, world_size = deepspeed_folder
    words = ["model=tiny", "model.num_layers=2", "model.max_seq_len=16"]
    assert run(["import", str(folder / "saved"), "--to", str(tmp_path / "c"), *words]) == 0, capsys.readouterr().err
    reader = opened(tmp_path / "c", 2)
    assert reader.marker.zero_stage == stage
    assert decode(ModelConfig, reader.marker.model) == tiny()
    covered: dict[tuple[str, str], int] = {}
    for rank in range(world_size):
        with np.load(folder / f"memory_{rank}.npz") as pieces:
            for key in pieces.files:
                kind, name, start = key.split("|")
                assert np.array_equal(reader.read(name, kind, int(start), pieces[key].size), pieces[key]), key
                covered[name, kind] = covered.get((name, kind), 0) + pieces[key].size
    assert {kind for _, kind in covered} == {"master", "exp_avg", "exp_avg_sq"}
    assert covered == {(name, kind): reader.numel(name) for name in reader.shapes for kind in reader.kinds(name)}


@pytest.mark.real
def test_what_a_deepspeed_folder_lacks_is_said(deepspeed_folder, tmp_path, capsys):
    folder, _, world_size = deepspeed_folder
    assert run(["import", str(folder / "saved"), "--run", "x", "--root", str(tmp_path)]) == 2
    assert "does not say what model it is; name it" in capsys.readouterr().err
    wrong = ["model=tiny", "model.num_layers=1", "model.max_seq_len=16"]
    assert run(["import", str(folder / "saved"), "--run", "x", "--root", str(tmp_path), *wrong]) == 2
    assert "is not model=tiny: blocks.1." in capsys.readouterr().err
    files = sorted((folder / "saved").glob("global_step2/*_optim_states.pt"))
    if world_size > 1:
        hidden = files[-1].with_suffix(".away")
        files[-1].rename(hidden)
        assert run(["import", str(folder / "saved"), "--run", "x", "--root", str(tmp_path), "model=tiny"]) == 1
        assert f"was saved by {world_size} ranks, the files of {world_size - 1} are there" in capsys.readouterr().err
        hidden.rename(files[-1])
    assert not (tmp_path / "x").exists()


class Exploit:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_runs_code_is_refused_with_its_reason(tmp_path, capsys):
    tag = tmp_path / "saved" / "global_step1"
    tag.mkdir(parents=True)
    (tmp_path / "saved" / "latest").write_text("global_step1")
    trap = tmp_path / "trapped"
    for file in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save({"x": Exploit(str(trap))}, tag / file)
    assert run(["import", str(tmp_path / "saved"), "--run", "x", "--root", str(tmp_path), "model=tiny"]) == 1
    error = capsys.readouterr().err
    assert "mkdir" in error
    assert "could run code" in error
    assert not trap.exists()
    (tag / "mp_rank_00_model_states.pt").write_bytes(b"not torch")
    assert run(["import", str(tmp_path / "saved"), "--run", "x", "--root", str(tmp_path), "model=tiny"]) == 1
    assert "damaged or not a file of torch.save" in capsys.readouterr().err


def test_a_tag_outside_the_folder_is_refused(tmp_path, capsys):
    (tmp_path / "latest").write_text("../elsewhere")
    assert run(["import", str(tmp_path), "--run", "x", "--root", str(tmp_path)]) == 2
    assert "names '../elsewhere'" in capsys.readouterr().err
