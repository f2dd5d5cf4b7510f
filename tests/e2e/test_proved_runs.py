"""`phalanx prove` once for real: prepare, a calm run, a run with kills and one at another world size."""

import json
import signal
from pathlib import Path

import pytest
from typed import Typist

from orchestrator.observe.ledger import read_events
from orchestrator.runfolder import RunFolder

pytestmark = pytest.mark.real


def test_a_small_twin_is_proved(local_typist: Typist, tmp_path: Path) -> None:
    options = ["--steps", "16", "--kills", "3", "--world-sizes", "1", "--json"]
    driver = local_typist.start("prove", "experiment=tiny_test", f"run.root={tmp_path}/runs", *options)
    driver.finish()
    proof = json.loads(driver.output)
    assert proof["is_equal"]
    killed, alone = proof["runs"]
    assert (killed["name"], killed["world_size"], killed["missed"]) == ("killed", 2, [])
    assert (alone["name"], alone["world_size"]) == ("world-1", 1)
    assert len(killed["injected"]) == 3
    assert all(check["is_equal"] for each in (killed, alone) for check in each["checks"])
    events = read_events(RunFolder(Path(proof["folder"]) / "killed").events)
    deaths = [e for e in events if e["event"] == "rank_died" and e["signal"] == signal.SIGKILL]
    assert len({event["attempt"] for event in deaths}) == 3
