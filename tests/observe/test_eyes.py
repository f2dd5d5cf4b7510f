"""Prometheus and TensorBoard read back what a run showed them."""

import socket
import struct
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from step_rows import row
from tensorboardX.proto.event_pb2 import Event

from launch.compose import compose
from orchestrator.config import PrometheusConfig, TrackingConfig
from orchestrator.errors import ConfigError
from orchestrator.observe.eyes import Eyes, open_eyes, rank_health
from orchestrator.observe.metrics import MetricsLog
from orchestrator.observe.names import prometheus_name, row_values
from orchestrator.runfolder import RunFolder

REPORT = {"step_s": 0.5, "data_s": 0.1, "snapshot_s": 0.0, "wait_s": 0.15, "memory_bytes": 1000}
EVERYTHING = {"world_size": 2, "mfu": 0.4, "memory_bytes": 2**30, "eval_loss": 3.0, "eval_perplexity": 20.0}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "runs/demo").mkdir(parents=True)
    return RunFolder(tmp_path / "runs/demo")


def scraped(address: str) -> dict[tuple[str, str], float]:
    """(name, rank or event, else "") -> value, of the run called demo, by Prometheus' own parser."""
    with urllib.request.urlopen(address) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels["run"] == "demo"
            found[sample.name, sample.labels.get("rank") or sample.labels.get("event", "")] = sample.value
    return found


def events_of(folder: Path) -> list[Event]:
    """TFRecords: length, its checksum, the event, its checksum; files in the order of their names, as TensorBoard."""
    events = []
    for file in sorted(folder.glob("events.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            events.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return events


def shown(folder: Path, tag: str) -> dict[int, float]:
    """step -> value as TensorBoard shows it: a session that begins at a step drops what came after it before."""
    values: dict[int, float] = {}
    for event in events_of(folder):
        if event.HasField("session_log") and event.step:
            values = {step: value for step, value in values.items() if step < event.step}
        for value in event.summary.value:
            if value.tag == tag:
                assert event.step not in values, "a step was written twice"
                values[event.step] = value.simple_value
    return values


def test_prometheus_finds_rows_ranks_and_events(folder: RunFolder) -> None:
    eyes = open_eyes(TrackingConfig(prometheus=PrometheusConfig(port=0)), folder)
    (notice,) = eyes.take_notices()
    address = notice.split()[1]
    eyes.ranks([REPORT, REPORT | {"data_s": 0.2}, REPORT])
    eyes.row(row(7, loss=3.25, **EVERYTHING))
    for name in ("rank_died", "recovered", "rank_died"):
        eyes.event({"event": name, "attempt": 1, "step": 7})
    found = scraped(address)
    assert found["phalanx_loss_metrics_global_avg_loss", ""] == 3.25
    assert found["phalanx_train_step", ""] == 7
    assert found["phalanx_rank_compute_seconds", "0"] == pytest.approx(0.25)
    assert found["phalanx_rank_data_wait_seconds", "1"] == 0.2
    assert found["phalanx_events_total", "rank_died"] == 2
    eyes.ranks([REPORT])
    assert {rank for name, rank in scraped(address) if name == "phalanx_rank_memory_bytes"} == {"0"}
    eyes.close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address)


def test_a_port_that_is_taken_is_a_notice(folder: RunFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        eyes = open_eyes(TrackingConfig(prometheus=PrometheusConfig(port=taken.getsockname()[1])), folder)
    (notice,) = eyes.take_notices()
    assert notice.startswith("Prometheus is off (")
    eyes.row(row(1))
    eyes.close()


def test_every_name_is_one_that_prometheus_takes() -> None:
    names = [prometheus_name(name) for name in row_values(row(1, **EVERYTHING, eval_bits_per_byte=1.0, goodput=0.9))]
    assert len({*names}) == len(names) == 17
    assert "phalanx_time_metrics_data_loading_seconds" in names
    assert "phalanx_memory_max_reserved_gib" in names
    assert "phalanx_goodput_percent" in names


def test_tensorboard_has_each_step_once_over_restarts_and_rollbacks(folder: RunFolder) -> None:
    config, log = TrackingConfig(tensorboard=True), MetricsLog(folder.metrics)

    def drive(attempt: int, first: int, last: int, *more: tuple[int, int, int]) -> None:
        """More: (step to roll back to, first, last)."""
        eyes = open_eyes(config, folder)
        for to_step, begin, end in ((None, first, last), *more):
            if to_step is not None:
                eyes.event({"event": "rollback", "attempt": attempt, "step": last, "to_step": to_step})
                attempt += 1
            for step in range(begin, end + 1):
                done = row(step, attempt, loss=float(attempt), time=1000.0 + step)
                log.append(done)
                eyes.ranks([REPORT, REPORT | {"wait_s": 0.0}])
                eyes.row(done)
        eyes.close()

    drive(1, 1, 10)
    drive(2, 8, 15)
    drive(3, 16, 20, (17, 18, 22))
    losses = shown(folder.tensorboard, "loss_metrics/global_avg_loss")
    assert [*losses] == list(range(1, 23))
    assert [*losses.values()] == [1.0] * 10 + [2.0] * 5 + [3.0] * 2 + [4.0] * 5
    assert shown(folder.tensorboard, "ranks/compute_seconds_max")[22] == pytest.approx(0.4)
    log.close()


def test_what_fails_is_told_once_and_left_alone() -> None:
    class Broken:
        def __getattr__(self, name: str):
            raise OSError("no space left")

    eyes = Eyes({"TensorBoard": Broken()})
    for step in range(3):
        eyes.row(row(step))
    assert eyes.take_notices() == ["TensorBoard is off from here on (no space left); metrics.jsonl has every row"]
    eyes.close()
    assert eyes.take_notices() == []


def test_health_is_a_rank_s_own_work() -> None:
    assert rank_health(REPORT) == {
        "compute_seconds": pytest.approx(0.25),
        "wait_seconds": 0.15,
        "data_wait_seconds": 0.1,
        "memory_bytes": 1000,
    }


def test_a_port_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tracking.prometheus.port=70000 is not a port"):
        compose(["tracking.prometheus.port=70000"])
