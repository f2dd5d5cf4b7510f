"""What is new about a GPU is told once; where the figures show."""

import io
from pathlib import Path
from typing import Any

import pytest
from step_rows import row

from orchestrator.control.chronicle import Chronicle
from orchestrator.observe.console import Console
from orchestrator.observe.eyes import Eyes, rank_health
from orchestrator.observe.gpus import GpuWatch
from orchestrator.observe.ledger import read_events
from orchestrator.observe.metrics import read_rows
from orchestrator.observe.names import prometheus_name, row_values
from orchestrator.observe.tracking import NullTracker
from orchestrator.runfolder import RunFolder

REPORT = {
    "attempt": 1, "step": 7, "step_s": 0.5, "data_s": 0.1, "snapshot_s": 0.0, "wait_s": 0.15, "memory_bytes": 1000,
}  # fmt: skip


def reading(gpu: str = "GPU-a", **figures: Any) -> dict[str, Any]:
    return {"uuid": gpu, "host": "node7", **figures}


def said(watch: GpuWatch, *readings: dict[str, Any] | None) -> list[tuple[int, str]]:
    reports = [REPORT if one is None else {**REPORT, "gpu": one} for one in readings]
    return [(fault["rank"], fault["message"]) for fault in watch.hear(reports)]


def test_errors_from_before_the_run_are_no_news_and_each_new_one_is_told_once() -> None:
    watch = GpuWatch()
    assert said(watch, reading(ecc_uncorrected=5)) == []
    assert said(watch, reading(ecc_uncorrected=5)) == []
    ((rank, message),) = said(watch, reading(ecc_uncorrected=7))
    assert rank == 0
    assert "2 new uncorrectable memory errors (ECC), 7 in all" in message
    assert said(watch, reading(ecc_uncorrected=7)) == []
    assert said(watch, reading(ecc_uncorrected=0)) == []  # its driver was loaded anew
    assert len(said(watch, reading(ecc_uncorrected=1))) == 1


def test_a_slowdown_is_told_when_it_begins_and_the_power_cap_is_none() -> None:
    watch = GpuWatch()
    assert said(watch, reading(throttle_reasons=0x04 | 0x01)) == []
    ((_, message),) = said(watch, reading(throttle_reasons=0x40, sm_clock_mhz=345, temperature_c=91))
    assert message == "is slowed down (hardware thermal slowdown) at 345 MHz, 91 °C"
    assert said(watch, reading(throttle_reasons=0x40)) == []
    ((_, message),) = said(watch, reading(throttle_reasons=0xC0))
    assert "power brake" in message
    assert "thermal" not in message
    assert said(watch, reading(throttle_reasons=0)) == []
    assert len(said(watch, reading(throttle_reasons=0x40))) == 1


def test_each_gpu_is_watched_by_itself_and_moves_with_its_rank() -> None:
    watch = GpuWatch()
    a, b = reading("GPU-a", ecc_uncorrected=0), reading("GPU-b", ecc_uncorrected=9)
    assert said(watch, a, b) == []
    assert said(watch, b, a) == []
    assert [rank for rank, _ in said(watch, None, {**a, "ecc_uncorrected": 1})] == [1]


def test_a_row_has_the_worst_of_the_newest_readings() -> None:
    watch = GpuWatch()
    assert watch.row_fields() == {}
    first = reading("GPU-a", temperature_c=60, sm_clock_mhz=1980, ecc_uncorrected=1, throttle_reasons=4)
    second = reading("GPU-b", temperature_c=70, sm_clock_mhz=1200, throttle_reasons=0x20)
    watch.hear([{"gpu": first}, {"gpu": second}])
    watch.hear([{}, {}])
    expected = {"gpu_temperature_c": 70, "gpu_sm_clock_mhz": 1200, "gpu_ecc_uncorrected": 1, "gpus_slowed": 1}
    assert watch.row_fields() == expected
    watch.hear([{}])
    assert watch.row_fields()["gpu_temperature_c"] == 60


class Seen:
    def __init__(self) -> None:
        self.health: list[Any] = []
        self.events: list[Any] = []

    def row(self, row: Any) -> None: ...
    def ranks(self, health: Any) -> None:
        self.health.append(health)

    def event(self, record: Any) -> None:
        self.events.append(record["event"])

    def close(self) -> None: ...


class Alerts(NullTracker):
    def __init__(self) -> None:
        super().__init__()
        self.alerts: list[tuple[str, str, str]] = []

    def alert(self, title: str, text: str, level: str = "WARN") -> None:
        self.alerts.append((title, text, level))


def test_a_fault_is_an_event_and_an_alert_and_figures_are_in_every_eye(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, seen, tracker = RunFolder(tmp_path), Seen(), Alerts()
    console = Console(io.StringIO(), False)
    chronicle = Chronicle(folder, console, tracker, 1, driver_started_s=0.0, eyes=Eyes({"seen": seen}))
    for errors in (0, 2):
        chronicle.ranks([{**REPORT, "gpu": reading(ecc_uncorrected=errors, temperature_c=61)}])
    chronicle.ranks([REPORT])
    chronicle.row(row(7, world_size=1), is_last=True)
    chronicle.close(0)
    (event,) = [event for event in read_events(folder.events) if event["event"] == "gpu_fault"]
    assert (event["rank"], event["node"], event["gpu"], event["step"]) == (0, "node7", "GPU-a", 7)
    assert [(title, level) for title, _, level in tracker.alerts] == [("a GPU is not well", "WARN")]
    assert "the GPU of rank 0 on node7 has 2 new uncorrectable memory errors" in tracker.alerts[0][1]
    assert seen.events == ["gpu_fault"]
    assert seen.health[-1][0]["gpu_temperature_c"] == 61.0  # the newest reading stands between two
    (kept,) = read_rows(folder.metrics)
    assert (kept.gpu_temperature_c, kept.gpu_ecc_uncorrected) == (61, 2)
    assert row_values(kept)["gpu/temperature_max(C)"] == 61
    assert prometheus_name("gpu/sm_clock_min(MHz)") == "phalanx_gpu_sm_clock_min_mhz"


def test_without_gpus_nothing_is_added() -> None:
    assert not any(name.startswith("gpu") for name in rank_health(REPORT))
    assert not any(name.startswith("gpu/") for name in row_values(row(1)))
