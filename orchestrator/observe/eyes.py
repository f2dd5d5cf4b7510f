"""What else looks at a run beside metrics.jsonl, the console and W&B. Training never fails because of them."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from orchestrator.config import TrackingConfig
from orchestrator.errors import ConfigError
from orchestrator.observe.gpus import gpu_health
from orchestrator.observe.metrics import StepRow, read_last_rows
from orchestrator.runfolder import RunFolder


class Eye(Protocol):
    """What Prometheus' port and TensorBoard's folder have in common."""

    def row(self, row: StepRow) -> None: ...

    def ranks(self, health: Sequence[Mapping[str, float]]) -> None:
        """One mapping for each rank, in order: figures of the step whose row comes next."""

    def event(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Eyes:
    """All of them; one that fails is told of once and then left alone."""

    def __init__(self, eyes: Mapping[str, Eye] | None = None, notices: Sequence[str] = ()) -> None:
        self._eyes = dict(eyes or {})
        self._notices = list(notices)

    @property
    def are_open(self) -> bool:
        """Whether any of them looks."""
        return bool(self._eyes)

    def row(self, row: StepRow) -> None:
        self._each(lambda eye: eye.row(row))

    def ranks(self, reports: Sequence[Mapping[str, Any]]) -> None:
        """Every rank's report of a step, in rank order."""
        health = [rank_health(report) for report in reports]
        self._each(lambda eye: eye.ranks(health))

    def event(self, record: Mapping[str, Any]) -> None:
        self._each(lambda eye: eye.event(record))

    def close(self) -> None:
        self._each(lambda eye: eye.close())
        self._eyes.clear()

    def take_notices(self) -> list[str]:
        taken, self._notices = self._notices, []
        return taken

    def _each(self, show: Callable[[Eye], None]) -> None:
        for name, eye in list(self._eyes.items()):
            try:
                show(eye)
            except Exception as error:
                del self._eyes[name]
                self._notices.append(f"{name} is off from here on ({error}); metrics.jsonl has every row")


def rank_health(report: Mapping[str, Any]) -> dict[str, float]:
    """What tells a sick rank from its neighbours: its own work, without the time in which it waited for others."""
    waited_s = report["data_s"] + report["snapshot_s"] + report["wait_s"]
    return {
        "compute_seconds": max(0.0, report["step_s"] - waited_s),
        "wait_seconds": report["wait_s"],
        "data_wait_seconds": report["data_s"],
        "memory_bytes": report["memory_bytes"],
        **gpu_health(report.get("gpu")),
    }


def check_eyes(config: TrackingConfig) -> None:
    """Raises ConfigError where what is asked for is not installed."""
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "tracking.tensorboard=true needs tensorboardX, which is not installed: pip install 'phalanx[tensorboard]'"
        )


def open_eyes(config: TrackingConfig, folder: RunFolder) -> Eyes:
    """Those that the config asks for; one that can't be opened is a notice."""
    opened: dict[str, Eye] = {}
    notices = []
    for name, is_wanted, open_one in (
        ("Prometheus", config.prometheus.port is not None, _prometheus),
        ("TensorBoard", config.tensorboard, _tensorboard),
    ):
        if is_wanted:
            try:
                opened[name], where = open_one(config, folder)
                notices.append(f"{name:<12}{where}")
            except Exception as error:
                notices.append(f"{name} is off ({error}); metrics.jsonl has every row")
    return Eyes(opened, notices)


def _prometheus(config: TrackingConfig, folder: RunFolder) -> tuple[Eye, str]:
    from orchestrator.observe.prometheus import PrometheusPort

    port = PrometheusPort(config.prometheus, folder.run_id)
    return port, port.address


def _tensorboard(config: TrackingConfig, folder: RunFolder) -> tuple[Eye, str]:
    from orchestrator.observe.tensorboard import TensorboardFolder

    written = read_last_rows(folder.metrics, 1)
    return TensorboardFolder(folder.tensorboard, written[0].step if written else 0), str(folder.tensorboard)
