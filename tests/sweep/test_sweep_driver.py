"""A sweep whose Ray is lost for good: it can be gone on with, which its exit code says."""

import io
import socket
from pathlib import Path

import pytest
from trials import recipe_of

from launch.compose import compose
from orchestrator.errors import EXIT_PREEMPTED
from orchestrator.sweep.driver import RayLostError, SweepDriver
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.host import RayHost
from orchestrator.sweep.settings import Metric, SweepConfig
from orchestrator.sweep.table import SweepTable


@pytest.mark.real
def test_a_ray_that_does_not_come_back_is_no_wrong_command(tmp_path: Path) -> None:
    said, folder = io.StringIO(), SweepFolder(tmp_path / "s")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        words = ["experiment=tiny_test", f"cluster.address=127.0.0.1:{deaf.getsockname()[1]}"]
        config = compose(words).config
        driver = SweepDriver(
            folder, recipe_of(config, SweepConfig()), SweepTable(said, False, Metric.loss), lambda: 0
        )
        driver._host = RayHost(config.cluster, 1, folder.ray_log)
        try:
            while driver._host.wait(600.0):
                pass
            with pytest.raises(RayLostError, match=r"^no Ray for the sweep's trials: .*nothing is lost$") as lost:
                driver._replace_host()
        finally:
            driver._host.close()
    assert lost.value.exit_code == EXIT_PREEMPTED
    assert "its trials go on from their checkpoints" in said.getvalue()
