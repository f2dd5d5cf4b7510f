"""A run's rows as columns, which a million of fit in; what counts apart from what was run again. Plan half."""

from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np

from orchestrator.observe.metrics import StepRow
from orchestrator.report.reduce import Curve, Floats, Indices

COLUMNS = (
    "step",
    "attempt",
    "loss",
    "lr",
    "grad_norm",
    "tokens",
    "tokens_per_s",
    "step_s",
    "data_s",
    "mfu",
    "memory_bytes",
    "world_size",
    "time",
    "eval_loss",
)


class History:
    """Takes rows in the order written; read it when all are in. What a row does not say is NaN."""

    def __init__(self) -> None:
        self._columns = {name: array("d") for name in COLUMNS}

    def taking(self, rows: Iterable[StepRow]) -> Iterator[StepRow]:
        """`rows`, noted as they pass."""
        columns = [(name, column.append) for name, column in self._columns.items()]
        for row in rows:
            for name, append in columns:
                value = getattr(row, name)
                append(float("nan") if value is None else value)
            yield row

    def __len__(self) -> int:
        return len(self._columns["step"])

    def column(self, name: str) -> Floats:
        """Of every row, those that were run again included."""
        return np.frombuffer(self._columns[name], dtype=np.float64) if len(self) else np.empty(0)

    @cached_property
    def counting(self) -> Indices:
        """Places of the rows that count, by step: of a step that was run again, the newest attempt's last row."""
        step, attempt = self.column("step"), self.column("attempt")
        order = np.lexsort((np.arange(step.size), attempt, step))
        return order[np.r_[np.diff(step[order]) != 0, True]] if step.size else np.empty(0, np.int64)

    def values(self, name: str) -> Floats:
        """Of the rows that count, by step."""
        return self.column(name)[self.counting]

    def curve(self, name: str, scale: float = 1.0) -> Curve:
        """A column over the steps; where no row knows it, an empty one."""
        return self._known(Curve(self.values("step"), self.values(name) * scale))

    def share(self, part: str, whole: str, scale: float = 100.0) -> Curve:
        with np.errstate(divide="ignore", invalid="ignore"):
            return Curve(self.values("step"), scale * self.values(part) / self.values(whole))

    def sparse(self, name: str) -> Curve:
        """A column that few rows have."""
        return self.curve(name).finite

    def repeated(self, name: str) -> list[Curve]:
        """What the rows that count have replaced, an unbroken piece for each stretch that was run again."""
        is_old = np.ones(len(self), dtype=bool)
        is_old[self.counting] = False
        old = np.flatnonzero(is_old)
        if not old.size:
            return []
        step, attempt = self.column("step")[old], self.column("attempt")[old]
        edges = np.flatnonzero((np.diff(step) <= 0) | (np.diff(attempt) != 0)) + 1
        return [Curve(self.column("step")[piece], self.column(name)[piece]) for piece in np.split(old, edges)]

    def largest(self, name: str) -> float | None:
        values = self.column(name)
        values = values[np.isfinite(values)]
        return float(values.max()) if values.size else None

    def median(self, name: str) -> float | None:
        values = self.values(name)
        values = values[np.isfinite(values)]
        return float(np.median(values)) if values.size else None

    def newest(self, name: str) -> float | None:
        """Of the last row that counts."""
        values = self.values(name)
        return float(values[-1]) if values.size and not np.isnan(values[-1]) else None

    def at(self, name: str, step: int) -> float | None:
        """Of the row of `step` that counts."""
        steps = self.values("step")
        place = int(np.searchsorted(steps, step))
        if place >= steps.size or steps[place] != step:
            return None
        value = float(self.values(name)[place])
        return None if np.isnan(value) else value

    @staticmethod
    def _known(curve: Curve) -> Curve:
        return curve if not np.isnan(curve.y).all() else Curve(curve.x[:0], curve.y[:0])
