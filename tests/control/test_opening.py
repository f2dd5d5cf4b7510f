"""What the start of a run looks at before there is a run."""

from pathlib import Path

import pytest
from data.prepared import write_shards

from launch.compose import compose
from orchestrator.control.opening import find_folder, read_data
from orchestrator.errors import DataError


def test_shards_are_read_before_the_first_start_and_not_when_the_run_goes_on(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path / "data", [1000])
    config = compose(["model=tiny", f"data.path={tmp_path}/data", f"run.root={tmp_path}/runs"]).config
    assert read_data(config) == manifest
    shard = tmp_path / "data" / "train_00000.bin"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(DataError, match=r"train_00000\.bin is damaged or another file"):
        read_data(config)
    folder = find_folder(config, manifest)
    assert not folder.path.exists()
    folder.path.mkdir(parents=True)
    folder.plan.touch()
    assert read_data(config) == manifest
