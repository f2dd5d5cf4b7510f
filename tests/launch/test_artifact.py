import pytest
import torch
from trained_run import write_checkpoint, write_data, write_run

from launch.artifact import open_checkpoint
from model.initial import initial_value
from model.sizing import parameter_shapes
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointError, ConfigError, DataError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact") / "data"
    return folder, write_data(folder)


@pytest.fixture
def run(tmp_path, data):
    torch.set_num_threads(1)
    return write_run(tmp_path / "runs", "tiny-1", *data, steps=[2, 10])


def test_every_way_to_name_it_opens_the_same(run, data, monkeypatch):
    monkeypatch.chdir(run.path.parent.parent)
    names = [
        "tiny-1",
        "runs/tiny-1",
        str(run.path),
        "runs/tiny-1/checkpoints",
        "runs/tiny-1/checkpoints/step_00000010",
    ]
    names.append(f"file://{run.checkpoints}")
    for name in names:
        artifact = open_checkpoint(name)
        assert (artifact.step, artifact.run_id, artifact.seq_len) == (10, "tiny-1", 32), name
        assert artifact.data_path == str(data[0])
    assert open_checkpoint("tiny-1", step=2).step == 2
    assert open_checkpoint("runs/tiny-1/checkpoints/step_00000002").step == 2


def test_loads_the_masters_that_two_ranks_wrote(run):
    artifact = open_checkpoint(str(run.path))
    model = artifact.load("cpu")
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == parameter_shapes(artifact.model)
    name, shape = "blocks.1.feed_forward.gate.weight", (176, 64)
    wanted = initial_value(name, shape, artifact.model, seed=10) * (0.15 / artifact.model.init_std)
    torch.testing.assert_close(model.get_parameter(name).detach(), wanted)


def test_checkpoints_may_lie_elsewhere(tmp_path, data):
    elsewhere = tmp_path / "elsewhere"
    run = write_run(tmp_path / "runs", "r", *data, steps=[3], words=(f"checkpoint.url={elsewhere}",))
    assert not run.checkpoints.exists()
    assert open_checkpoint("r", root=str(tmp_path / "runs")).step == 3


def test_an_unknown_run_is_refused_with_the_near_miss(run, tmp_path):
    with pytest.raises(ConfigError, match=r"run tiny-2 is not known; did you mean tiny-1\? known: tiny-1"):
        open_checkpoint("tiny-2", root=str(run.path.parent))
    with pytest.raises(ConfigError, match=r"neither a run nor a folder, and .*nothing has no runs"):
        open_checkpoint("tiny-1", root=str(tmp_path / "nothing"))


def test_steps_that_are_not_there_are_refused(run, data, tmp_path):
    with pytest.raises(ConfigError, match="has no committed checkpoint of step 5; it has 2, 10"):
        open_checkpoint(str(run.path), step=5)
    with pytest.raises(ConfigError, match="contradicts"):
        open_checkpoint(str(run.checkpoints / "step_00000002"), step=10)
    empty = write_run(tmp_path / "runs", "tiny-0", *data, steps=[])
    with pytest.raises(ConfigError, match="has no committed checkpoint under"):
        open_checkpoint(str(empty.path))
    (run.checkpoints / "step_00000010/COMMITTED.json").unlink()
    assert open_checkpoint(str(run.path)).step == 2


def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(run):
    payload = next((run.checkpoints / "step_00000010").glob("rank_00001*"))
    content = bytearray(payload.read_bytes())
    content[-5] ^= 1
    payload.write_bytes(content)
    before = sorted(file.name for file in payload.parent.iterdir())
    with pytest.raises(CheckpointError, match=r"step_00000010 is damaged: .*take another with --step: 2"):
        open_checkpoint(str(run.path))
    assert sorted(file.name for file in payload.parent.iterdir()) == before
    assert open_checkpoint(str(run.path), step=2).step == 2


def test_a_checkpoint_that_does_not_hold_its_model_is_refused(tmp_path, data):
    run = write_run(tmp_path / "runs", "r", *data, steps=[1])
    artifact = open_checkpoint(str(run.path))
    other = dict(artifact.reader.marker.model) | {"num_layers": 3}
    write_checkpoint(Store(tmp_path / "c"), 1, artifact.model, {"model": other})
    with pytest.raises(CheckpointError, match=r"blocks.2.attention_norm.weight is missing"):
        open_checkpoint(str(tmp_path / "c"))
    write_checkpoint(Store(tmp_path / "d"), 1, artifact.model, {"model": other | {"norm": "batchnorm"}})
    with pytest.raises(CheckpointError, match="a model that this version does not know"):
        open_checkpoint(str(tmp_path / "d"))


def test_data_that_moved_is_found_with_the_option_and_other_data_is_refused(tmp_path, data, run):
    moved, gone = tmp_path / "moved", tmp_path / "gone"
    (data[0]).rename(moved)
    try:
        with pytest.raises(DataError, match=r"has no manifest.json.* with --data"):
            _ = open_checkpoint(str(run.path)).manifest
        found = open_checkpoint(str(run.path), data_path=str(moved))
        assert found.tokenizer_url == f"{moved}/tokenizer.json"
        write_data(gone, ["completely different text " * 9] * 3)
        with pytest.raises(DataError, match="was prepared with another tokenizer"):
            _ = open_checkpoint(str(run.path), data_path=str(gone)).manifest
    finally:
        moved.rename(data[0])


def test_a_missing_or_changed_tokenizer_is_refused(tmp_path):
    folder = tmp_path / "data"
    run = write_run(tmp_path / "runs", "r", folder, write_data(folder), steps=[1])
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(DataError, match="is not the tokenizer that the data was prepared with"):
        _ = open_checkpoint(str(run.path)).tokenizer_url
    tokenizer.unlink()
    with pytest.raises(DataError, match=r"tokenizer.json, the tokenizer, is missing"):
        _ = open_checkpoint(str(run.path)).tokenizer_url
