"""Rows for TensorBoard: the only file that imports tensorboardX, which needs neither torch nor TensorFlow."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

from orchestrator.observe.metrics import StepRow
from orchestrator.observe.names import row_values

FLUSH_S = 10


class TensorboardFolder:
    """Appends to `folder`. A step that is there already is left out; after a rollback TensorBoard is told to drop
    what comes after the step that the new branch begins at (`purge_step`)."""

    def __init__(self, folder: Path, newest_step: int) -> None:
        """`newest_step`: of the rows that earlier drivers wrote."""
        self._folder = folder
        self._newest_step = newest_step
        self._health: Sequence[Mapping[str, float]] = ()
        self._writer: Any = self._new_writer(newest_step)

    def row(self, row: StepRow) -> None:
        if row.step <= self._newest_step:
            return
        self._newest_step = row.step
        for name, value in row_values(row).items():
            if name != "train/step":
                self._writer.add_scalar(name, value, row.step, walltime=row.time)
        for name in dict.fromkeys(name for values in self._health for name in values):
            values = [values[name] for values in self._health if name in values]
            self._writer.add_scalar(f"ranks/{name}_max", max(values), row.step, walltime=row.time)
            self._writer.add_scalar(f"ranks/{name}_min", min(values), row.step, walltime=row.time)

    def ranks(self, health: Sequence[Mapping[str, float]]) -> None:
        """The spread over the ranks; each by itself is for Prometheus."""
        self._health = health

    def event(self, record: Mapping[str, Any]) -> None:
        if record["event"] == "rollback" and record["to_step"] < self._newest_step:
            self._newest_step = record["to_step"]
            self._writer.close()
            self._writer = self._new_writer(self._newest_step)

    def close(self) -> None:
        self._writer.close()

    def _new_writer(self, newest_step: int) -> Any:
        purge_step = newest_step + 1 if newest_step else None
        # Files are named after the second: two of one second would be one, and the older one lost.
        suffix = f".{time.time_ns()}"
        return SummaryWriter(str(self._folder), purge_step=purge_step, flush_secs=FLUSH_S, filename_suffix=suffix)
