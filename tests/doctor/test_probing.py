"""`phalanx doctor --probe` on this machine, and `phalanx plan` after it."""

import json
from pathlib import Path

import pytest

from launch.cli import main
from orchestrator.config import Precision
from orchestrator.doctor.proberecord import probe_path, recorded_probe


@pytest.fixture
def probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHALANX_PROBES", str(tmp_path / "probes"))
    return tmp_path / "probes"


def planned(capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["plan", "--json", "experiment=tiny_test", "data.path=x", "data.vocab_size=300"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.real
def test_what_is_measured_is_kept_and_planned_with(probes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys)["step_time_source"] == "assumption"
    assert main(["doctor", "--probe"]) == 0
    said = capsys.readouterr()
    assert f"kept in {probe_path()}" in said.out
    assert "gloo" in said.err
    probe = recorded_probe()
    assert probe is not None
    for rates in probe.rates:
        for by_width in rates.matmul_flops_per_s.values():
            assert all(1e7 < flops < 1e14 for flops in by_width.values())
        assert 1e7 < rates.memory_bytes_per_s < 1e13
    assert set(probe.rates[0].matmul_flops_per_s) == {Precision.fp32, Precision.bf16}
    assert probe.rates[0].threads == 1
    assert probe.rates[-1].threads == probe.cpus
    assert 1e6 < probe.link_bytes_per_s < 1e12
    after = planned(capsys)
    assert after["step_time_source"] == "probe"
    assert probe.host in after["plan"]["predicted"]["basis"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"host": 1}'])
def test_a_damaged_record_is_as_good_as_none(probes: Path, text: str) -> None:
    assert recorded_probe() is None
    probe_path().parent.mkdir(parents=True)
    probe_path().write_text(text)
    assert recorded_probe() is None


def test_each_host_has_its_own_in_the_user_s_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PHALANX_PROBES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert probe_path("node7") == tmp_path / "phalanx/probes/node7.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert probe_path("node7") == tmp_path / ".cache/phalanx/probes/node7.json"
