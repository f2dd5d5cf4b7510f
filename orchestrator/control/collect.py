"""From what single ranks say to what the world did: rows of metrics, markers of checkpoints. No effects.

Partial sums travel with the ranks' reports and are added here in rank order, so the result is the same to the
last bit whatever order the reports arrive in.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import exp, log
from operator import itemgetter
from typing import Any

from orchestrator.observe.metrics import StepRow
from orchestrator.spec import RunPlan

Message = dict[str, Any]


@dataclass(slots=True)
class Gathering:
    """Messages of one kind, by step and rank, until every rank of the attempt has spoken."""

    world_size: int
    _by_step: dict[int, dict[int, Message]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, message: Message) -> list[Message] | None:
        """All ranks' messages of that step in rank order, once the last one is here."""
        said = self._by_step[message["step"]]
        said[message["rank"]] = message
        if len(said) < self.world_size:
            return None
        del self._by_step[message["step"]]
        return [said[rank] for rank in range(self.world_size)]


def step_row(plan: RunPlan, messages: list[Message]) -> StepRow:
    """The world's row of one step from every rank's `step` message."""
    tokens = plan.batch.tokens_per_step
    step_s = _most(messages, "step_s")
    tokens_per_s = tokens / step_s
    mfu = None
    if plan.peak_flops_per_worker is not None:
        mfu = plan.flops_per_token * tokens_per_s / (plan.peak_flops_per_worker * len(messages))
    return StepRow(
        step=messages[0]["step"],
        attempt=messages[0]["attempt"],
        loss=sum(map(itemgetter("loss_sum"), messages)) / tokens,
        lr=messages[0]["lr"],
        grad_norm=messages[0]["grad_norm"],
        tokens=tokens,
        tokens_per_s=tokens_per_s,
        step_s=step_s,
        data_s=_most(messages, "data_s"),
        snapshot_s=_most(messages, "snapshot_s"),
        keep_s=_most(messages, "keep_s"),
        recheck_s=max(m.get("recheck_s", 0.0) for m in messages) or None,
        batch_digest=_digest(messages, "digest"),
        rng_digest=_digest(messages, "rng_digest"),
        world_size=len(messages),
        mfu=mfu,
        memory_bytes=_most(messages, "memory_bytes"),
        time=_most(messages, "time"),
    )


def _most(messages: list[Message], key: str) -> Any:
    return max(map(itemgetter(key), messages))


def _digest(messages: list[Message], key: str) -> str:
    """The sum modulo 2**64 of the ranks' parts."""
    return f"{sum(int(m[key], 16) for m in messages) % 2**64:016x}"


def slowest_phases(phases_s: Sequence[dict[str, float]]) -> dict[str, float]:
    """Phase -> seconds on the rank that took longest for all of them together; ranks wait for each other in some."""
    return max(phases_s, key=lambda laps_s: sum(laps_s.values()))


def with_evaluation(row: StepRow, messages: list[Message], bytes_per_token: float) -> StepRow:
    """The row with the validation split's loss (mean over its tokens), perplexity and bits per byte.

    bits per byte = loss / ln 2 / bytes_per_token, with the text's UTF-8 bytes per token of the whole split.
    """
    tokens = sum(m["tokens"] for m in messages)
    if tokens == 0:
        return row
    loss = sum(m["loss_sum"] for m in messages) / tokens
    return replace(
        row,
        eval_loss=loss,
        eval_perplexity=exp(min(loss, 700.0)),
        eval_bits_per_byte=loss / log(2) / bytes_per_token,
        eval_s=max(m["seconds"] for m in messages),
    )
