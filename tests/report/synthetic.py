"""Run folders of any length, as a driver writes them: a noisy falling loss, failures, checkpoints."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.codec import encode
from orchestrator.observe.ledger import Ledger
from orchestrator.observe.metrics import StepRow
from orchestrator.runfolder import RunFolder

BEGUN_S = 1_790_000_000.0
STEP_S = 0.5


def step_row(step: int, attempt: int = 1, **changes: Any) -> StepRow:
    """Deterministic: noise by a hash of the step."""
    noise = ((step * 2_654_435_761) % 1000) / 1000 - 0.5
    loss = 2.0 + 6.0 * math.exp(-step / 400) + 0.2 * noise
    values: dict[str, Any] = {
        "step": step,
        "attempt": attempt,
        "loss": loss,
        "lr": 4e-3 * min(1.0, step / 20),
        "grad_norm": 1.0 + noise,
        "tokens": 2048,
        "tokens_per_s": 4096.0 * (1 + 0.1 * noise),
        "step_s": STEP_S,
        "data_s": 0.005,
        "batch_digest": f"{step:016x}",
        "world_size": 2,
        "memory_bytes": 460 * 2**20 + step % 7,
        "time": BEGUN_S + 10 + STEP_S * step + 2.0 * (attempt - 1),
    }
    return StepRow(**(values | changes))


class Writer:
    """Writes a run folder event by event."""

    def __init__(self, path: Path, plan: Any = None, config: dict[str, Any] | None = None) -> None:
        self.folder = RunFolder(path)
        path.mkdir(parents=True)
        self.now_s = BEGUN_S
        self._ledger = Ledger(self.folder.events, lambda: self.now_s)
        self.folder.config.write_text(json.dumps(config or {}))
        if plan is not None:
            self.folder.plan.write_text(json.dumps(encode(plan)))

    def event(self, name: str, attempt: int, step: int | None, **fields: Any) -> None:
        self._ledger.append(name, attempt, step, **fields)

    def rows(self, rows: Iterator[StepRow] | list[StepRow]) -> None:
        with self.folder.metrics.open("a") as file:
            for row in rows:
                known = {name: value for name, value in encode(row).items() if value is not None}
                file.write(json.dumps(known) + "\n")
                self.now_s = row.time or self.now_s

    def close(self) -> None:
        self._ledger.close()


def disturbed_run(path: Path, steps: int, *, every: int, plan: Any = None, config: Any = None) -> RunFolder:
    """A finished run in which rank 1 was killed every `every` steps, each time with two steps run again."""
    writer = Writer(path, plan, config)
    writer.event("run_started", 0, 0, driver_started_s=BEGUN_S)
    attempt, start = 1, 0
    while True:
        writer.event("attempt_started", attempt, start, resume_step=start, world_size=2)
        end = min(steps, every * attempt)
        writer.rows(step_row(step, attempt) for step in range(start + 1, end + 1))
        if attempt > 1:
            writer.event("recovered", attempt, start + 1, downtime_s=1.25, steps_lost=2, source="memory")
        if end == steps:
            break
        message = "from outside, and not for want of memory"
        writer.event("rank_died", attempt, end, rank=1, node="here", signal=9, exit_code=None, message=message)
        writer.event("rank_died", attempt, end, rank=0, node="here", exit_code=1, signal=None,
                     message="RuntimeError: Connection closed by peer")  # fmt: skip
        attempt, start = attempt + 1, max(0, end - 2)
    writer.event(
        "checkpoint_committed", attempt, steps, path=str(path / "checkpoints/step"), bytes=15_200_000, seconds=0.5
    )
    writer.event("run_finished", attempt, steps)
    writer.close()
    return writer.folder
