"""A port of the driver's that Prometheus scrapes: the only file that imports prometheus_client."""

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from orchestrator.config import PrometheusConfig
from orchestrator.observe.metrics import StepRow
from orchestrator.observe.names import prometheus_name, row_values


class PrometheusPort:
    """The newest step's values as gauges, each rank's health, and counts of events."""

    def __init__(self, config: PrometheusConfig, run_id: str) -> None:
        """Errors: OSError where the port is taken."""
        self._run_id = run_id
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self._rank_values: set[tuple[str, int]] = set()
        """(figure, rank) that are shown."""
        self._events = Counter("phalanx_events", "Events of the run", ["run", "event"], registry=self._registry)
        self._server, self._thread = start_http_server(config.port or 0, config.host, registry=self._registry)
        self.address = f"http://{config.host}:{self._server.server_port}/metrics"

    def row(self, row: StepRow) -> None:
        for name, value in row_values(row).items():
            self._gauge(prometheus_name(name), name, "run").labels(self._run_id).set(value)

    def ranks(self, health: Sequence[Mapping[str, float]]) -> None:
        """Rank by rank; what a rank does not say any more, as in a smaller world, is taken away."""
        for rank, values in enumerate(health):
            for name, value in values.items():
                gauge = self._gauge(f"phalanx_rank_{name}", f"{name} of a rank's last step", "run", "rank")
                gauge.labels(self._run_id, rank).set(value)
        now = {(name, rank) for rank, values in enumerate(health) for name in values}
        for name, rank in self._rank_values - now:
            self._gauges[f"phalanx_rank_{name}"].remove(self._run_id, str(rank))
        self._rank_values = now

    def event(self, record: Mapping[str, Any]) -> None:
        self._events.labels(self._run_id, record["event"]).inc()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _gauge(self, name: str, words: str, *labels: str) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, words, labels, registry=self._registry)
        return self._gauges[name]
