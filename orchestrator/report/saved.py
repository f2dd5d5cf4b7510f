"""The checkpoints that a run has, read from its events. Plan half."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.report.record import RunRecord


@dataclass(frozen=True, slots=True)
class Saved:
    step: int
    path: str
    num_bytes: int | None
    seconds: float | None
    loss: float | None
    eval_loss: float | None


def saved_checkpoints(record: RunRecord) -> list[Saved]:
    """Those that the ledger says are there still, oldest first."""
    there: dict[int, Saved] = {}
    for event in record.events:
        step = event.get("step")
        if event["event"] == "checkpoint_committed" and step is not None:
            there.pop(step, None)
            there[step] = Saved(
                step,
                str(event.get("path") or ""),
                event.get("bytes"),
                event.get("seconds"),
                record.history.at("loss", step),
                record.history.at("eval_loss", step),
            )
            for gone in event.get("pruned") or ():
                there.pop(gone, None)
        elif event["event"] == "checkpoint_rejected" and step is not None:
            there.pop(step, None)
    return list(there.values())


def best_of(saved: Sequence[Saved]) -> Saved | None:
    """The lowest validation loss where any has one, else the lowest training loss, else the newest."""
    for name in ("eval_loss", "loss"):
        known = [one for one in saved if getattr(one, name) is not None]
        if known:
            return min(known, key=lambda one: float(getattr(one, name)))
    return saved[-1] if saved else None
