"""The rows of this machine, with what a person would set wrong really set wrong."""

import os
import resource
import socket
from pathlib import Path

import pytest

from orchestrator.doctor import machine, services, software
from orchestrator.doctor.finding import Level


def test_this_environment_is_fit_to_run_its_own_tests():
    failed = [finding for finding in [*software.software(), *software.torch_and_gpu()] if finding.level is Level.fail]
    assert failed == []


def test_a_machine_without_a_compiler_lacks_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [finding for finding in software.software() if finding.level is not Level.ok] == []


def test_a_folder_that_is_not_there_yet_is_judged_by_its_parent(tmp_path: Path):
    for name in ("a", "a" * 300):
        assert machine.disk(str(tmp_path / name / "b")).level is not Level.fail


def test_a_folder_that_cannot_be_written_fails():
    finding = machine.disk("/proc/phalanx")
    assert finding.level is Level.fail or os.access("/proc", os.W_OK)
    assert "run.root" in finding.cure or finding.level is not Level.fail


def test_few_open_files_are_told_with_the_command():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        finding = machine.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert finding.level is Level.warn
    assert "ulimit -n" in finding.cure


def test_a_temporary_folder_too_long_for_sockets_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert machine.temp_folder().level is Level.warn


def test_every_row_of_the_machine_has_a_cure_where_it_needs_one(tmp_path: Path):
    rows = list(machine.machine([str(tmp_path)]))
    assert len(rows) == 8
    assert all(bool(row.cure) == (row.level is not Level.ok) for row in rows)


def test_a_ray_that_does_not_answer_fails():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        finding = services.ray(f"127.0.0.1:{port}")
    assert finding.level is Level.fail
    assert f"127.0.0.1:{port}" in finding.found


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:gcs"])
def test_what_is_no_address_of_a_ray_fails(address: str):
    finding = services.ray(address)
    assert (finding.level, finding.found) == (Level.fail, f"{address} is not HOST:PORT")


def test_a_ray_that_listens_is_seen():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        assert services.ray(f"127.0.0.1:{listening.getsockname()[1]}").level is Level.ok


@pytest.mark.parametrize(("mode", "level"), [(0o600, Level.ok), (0o644, Level.warn)])
def test_a_token_that_others_can_read_is_told_and_never_shown(
    mode: int, level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "token"
    path.write_text("s3cret")
    path.chmod(mode)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    (finding,) = services.ray_token()
    assert finding.level is level
    assert "s3cret" not in finding.found + finding.cure


def test_a_token_in_the_environment_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    (finding,) = services.ray_token()
    assert finding.level is Level.warn
    assert "s3cret" not in finding.found + finding.cure


def test_wandb_without_a_key_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert "offline" in services.wandb().found


def test_wandb_with_a_key_and_nobody_there_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.delenv("WANDB_MODE", raising=False)
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        finding = services.wandb()
    assert finding.level is Level.warn
    assert "x" * 40 not in finding.found + finding.cure


def test_a_server_of_wandb_s_that_can_t_be_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:none")
    finding = services.wandb()
    assert finding.level is Level.warn
    assert finding.found.startswith("127.0.0.1 does not answer: Port could not be cast")
