"""metrics.jsonl: one row per optimizer step (contract, DESIGN section 5)."""

from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from orchestrator.observe.jsonlines import NOT_FINITE, JsonLines, read_last_records, read_records

_ROW_BYTES = 1024
"""More than a row of any run takes, for reading the end of a long file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRow:
    """What one optimizer step of the whole world was like."""

    step: int
    """Optimizer steps done, this one included: the first row of a run has step 1."""
    attempt: int
    loss: float
    """Mean over the target tokens of the global batch."""
    lr: float
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Target tokens of this step's global batch."""
    tokens_per_s: float
    """Of the whole world."""
    step_s: float
    """Wall time of the step on the slowest rank, waiting for data included."""
    data_s: float
    """The part of step_s that the slowest rank waited for data."""
    batch_digest: str
    """16 hexadecimal digits over the rows that the ranks really read."""
    rng_digest: str | None = None
    """Over the random generators' states after each micro-batch: equal where the same numbers were drawn."""
    snapshot_s: float | None = None
    """The part of step_s that the slowest rank's update waited for the snapshot of the step before."""
    keep_s: float | None = None
    """Before step_s: what the slowest rank's training thread itself did for the snapshot of the step before."""
    recheck_s: float | None = None
    """Before step_s: what it took the slowest rank to do the step before once more (fault.recheck_every_steps)."""
    world_size: int | None = None
    mfu: float | None = None
    """Model FLOPs utilisation, 0 to 1; None where the peak of the hardware is not known."""
    memory_bytes: int | None = None
    """Peak of the rank that used most: GPU memory, or resident memory on a CPU."""
    gpu_temperature_c: int | None = None
    """Of the hottest GPU; this and what follows only where NVML tells (gpus.py), read every few seconds."""
    gpu_sm_clock_mhz: int | None = None
    """Of the slowest GPU."""
    gpu_ecc_uncorrected: int | None = None
    """Uncorrectable memory errors of all GPUs since their drivers were loaded."""
    gpus_slowed: int | None = None
    """GPUs that are slowed down by heat, by their power supply or by a fault."""
    time: float | None = None
    """When the slowest rank had done the step, in unix seconds by its own clock."""
    eval_loss: float | None = None
    eval_perplexity: float | None = None
    eval_bits_per_byte: float | None = None
    eval_s: float | None = None
    """What the evaluation took on the slowest rank, after step_s."""
    goodput: float | None = None
    """Share of the run's wall time so far that went into steps done for the first time, 0 to 1."""


_FIELDS = tuple(field.name for field in fields(StepRow))
_REQUIRED = frozenset(field.name for field in fields(StepRow) if field.default is MISSING)


class MetricsLog:
    """The run's one writer of metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)

    def append(self, row: StepRow) -> None:
        """Optional fields without a value are left out; a NaN loss is null, named in `not_finite`."""
        record = {name: value for name, value in asdict(row).items() if name in _REQUIRED or value is not None}
        self._lines.append(record)

    def close(self) -> None:
        self._lines.close()


def read_rows(path: Path) -> list[StepRow]:
    """Every whole row in the order written, replayed steps included; NaN and infinities are floats again."""
    return list(stream_rows(path))


def stream_rows(path: Path) -> Iterator[StepRow]:
    """The same one by one: a long run's rows need not fit in memory."""
    return _rows(read_records(path))


def read_last_rows(path: Path, count: int) -> list[StepRow]:
    """The last `count` rows or fewer, without reading the whole file."""
    return list(_rows(read_last_records(path, count * _ROW_BYTES)))[-count:]


def surviving_rows(path: Path) -> dict[int, StepRow]:
    """Step -> the row that counts, in order of steps: after a rollback, that of the newest attempt."""
    newest: dict[int, StepRow] = {}
    for row in read_rows(path):
        if row.step not in newest or row.attempt >= newest[row.step].attempt:
            newest[row.step] = row
    return dict(sorted(newest.items()))


def _rows(records: Iterable[dict[str, Any]]) -> Iterator[StepRow]:
    return (_row(record) for record in records if record.keys() >= _REQUIRED)


def _row(record: dict[str, Any]) -> StepRow:
    """Fields of a newer version are ignored, so that an older one can still read the file."""
    odd = record.get(NOT_FINITE, {})
    values: dict[str, Any] = {name: float(odd[name]) if name in odd else record.get(name) for name in _FIELDS}
    return StepRow(**values)
