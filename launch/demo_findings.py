"""What the demo's run shows, and what it promised and did not: read from its events and rows. No effects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.observe.ledger import EventName
from orchestrator.observe.metrics import StepRow
from orchestrator.observe.units import duration_text, plural

VICTIM = 1
"""The rank that is killed."""
WELL_BELOW = 0.8
"""The last losses must be below this share of the first one."""
_LAST_ROWS = 5


@dataclass(frozen=True, slots=True)
class Kill:
    """What was done to the run."""

    pid: int
    at_step: int
    """Newest step in metrics.jsonl at that moment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What the run left behind."""

    kills: Sequence[Kill]
    events: Sequence[dict[str, Any]]
    rows: Sequence[StepRow]
    """As written: steps that were run again are there twice."""
    losses: list[float]
    """Of each step's newest row, in order of steps."""


def findings(outcome: Outcome) -> dict[str, str]:
    """A short name and a sentence for each thing worth telling."""
    losses = outcome.losses
    told = {"loss": f"{losses[0]:.2f} at the first step, {mean_of_last(losses):.2f} over the last {_LAST_ROWS}"}
    for kill in outcome.kills:
        told["killed"] = f"rank {VICTIM} (pid {kill.pid}) after step {kill.at_step}"
    for event in outcome.events:
        if event["event"] == EventName.recovered:
            told["cost"] = (
                f"training again after {duration_text(event['downtime_s'])}, "
                f"{plural(event['steps_lost'], 'step')} run again (restored from {event['source']})"
            )
    if pairs := repeated(outcome.rows):
        told["run twice"] = (
            f"{plural(len(pairs), 'step')}: the same samples in {sum(map(same_samples, pairs))}, "
            f"the same loss to the last bit in {sum(map(same_loss, pairs))}"
        )
    return told


def broken_promises(outcome: Outcome) -> list[str]:
    """What the demo says that it shows, and did not; empty if all is well."""
    names = [event["event"] for event in outcome.events]
    pairs, losses = repeated(outcome.rows), outcome.losses
    lost = sum(event["steps_lost"] for event in outcome.events if event["event"] == EventName.recovered)
    first_steps = {*range(1, len(losses) + 1)}
    other_samples = [pair[0].step for pair in pairs if not same_samples(pair)]
    other_losses = [pair[0].step for pair in pairs if not same_loss(pair)]
    checks = (
        (bool(outcome.kills), f"rank {VICTIM} was not killed: its process was not found, or training ended first"),
        (EventName.rank_died in names, "events.jsonl has no rank_died: the death was not noticed"),
        (EventName.recovered in names, "events.jsonl has no recovered: training did not go on after the kill"),
        (EventName.run_finished in names, "events.jsonl has no run_finished: training did not reach its last step"),
        (first_steps == {row.step for row in outcome.rows}, "metrics.jsonl does not have every step"),
        (
            bool(pairs) or not lost,
            f"the ledger says that {plural(lost, 'step')} were lost, but no step was run twice",
        ),
        (not other_samples, f"steps {other_samples} saw other samples the second time"),
        (not other_losses, f"steps {other_losses} had another loss the second time"),
        (
            bool(losses) and mean_of_last(losses) < WELL_BELOW * losses[0],
            f"the losses {[round(loss, 2) for loss in losses[:1] + losses[-1:]]}, first and last, are too close: "
            f"the last ones must be below {WELL_BELOW:.0%} of the first",
        ),
    )
    return [problem for is_kept, problem in checks if not is_kept]


def repeated(rows: Sequence[StepRow]) -> list[tuple[StepRow, StepRow]]:
    """Steps that two attempts have done: the first attempt's row and the last one's."""
    by_step: dict[int, list[StepRow]] = {}
    for row in rows:
        by_step.setdefault(row.step, []).append(row)
    return [(same_step[0], same_step[-1]) for same_step in by_step.values() if len(same_step) > 1]


def same_samples(pair: tuple[StepRow, StepRow]) -> bool:
    return pair[0].batch_digest == pair[1].batch_digest


def same_loss(pair: tuple[StepRow, StepRow]) -> bool:
    return pair[0].loss == pair[1].loss


def mean_of_last(losses: Sequence[float]) -> float:
    last = losses[-_LAST_ROWS:]
    return sum(last) / len(last)
