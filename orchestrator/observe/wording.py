"""What the console says, as text: summary, training line, events in plain words, the end. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from orchestrator.observe.failure import signal_name
from orchestrator.observe.goodput import Goodput, Spent
from orchestrator.observe.metrics import StepRow
from orchestrator.observe.units import bytes_text, count_text, duration_text, flops_text, plural, rate_text
from orchestrator.spec import BatchShape, ResumePoint, RunPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class StartFacts:
    """What the start-up summary tells beyond the plan."""

    run_folder: str
    nodes: Mapping[str, int]
    """Node -> workers on it."""
    device_name: str | None = None
    """`NVIDIA H100 80GB HBM3`; None says no more than cpu or cuda."""
    resume: ResumePoint = field(default_factory=ResumePoint)
    snapshots: str | None = None
    """Which copies of the state are kept, how often, and what they take."""
    tracking: str | None = None
    """W&B's URL or offline folder; None where it is disabled or not yet known."""
    warnings: Sequence[str] = ()
    """What was degraded, one sentence each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndFacts:
    run_id: str
    run_folder: str
    is_finished: bool
    step: int
    steps: int
    tokens: int
    """Trained on by the rows that count."""
    elapsed_s: float
    """Of this driver, recoveries included."""
    loss: float | None
    restarts: int
    downtime_s: float
    checkpoint: str | None
    memory: str | None = None
    """What snapshots took of a node, where that was measured."""
    snapshots: str | None = None
    """Where snapshots or copies came at longer intervals than asked for."""
    goodput: Goodput
    resume_command: str | None = None
    """Given where the run is not finished: the command that goes on with it."""


def summary_lines(plan: RunPlan, facts: StartFacts) -> list[str]:
    """The start-up summary, one `name  value` a line, warnings last."""
    tokens = plan.steps * plan.batch.tokens_per_step
    nodes = ", ".join(f"{node} ({plural(workers, 'worker')})" for node, workers in facts.nodes.items())
    rows = {
        "run": plan.run_id,
        "model": f"{plan.model.name}: {count_text(plan.parameters)} parameters,"
        f" {flops_text(plan.flops_per_token)} per token",
        "tokens": f"{count_text(tokens)} in {plural(plan.steps, 'step')}:"
        f" {tokens / plan.parameters:.1f} per parameter",
        "batch": batch_words(plan.batch),
        "devices": f"{plan.batch.world_size} x {facts.device_name or plan.device} on {nodes}",
        "engine": f"ZeRO stage {plan.zero_stage}, {plan.precision}",
        "start": resume_words(facts.resume, plan.steps),
        **({"snapshots": facts.snapshots} if facts.snapshots else {}),
        "run folder": facts.run_folder,
        "metrics": f"{facts.run_folder}/metrics.jsonl",
    }
    if facts.tracking:
        rows["W&B"] = facts.tracking
    return [f"{name:<12}{value}" for name, value in rows.items()] + [
        f"{'warning':<12}{text}" for text in facts.warnings
    ]


def batch_words(batch: BatchShape) -> str:
    """`96 samples = 4 per micro-batch x 8 workers x 3 micro-steps; 49,152 tokens a step`."""
    whole = batch.micro_batch_size * batch.world_size * batch.micro_steps
    padding = (
        "" if batch.is_even else f", {plural(whole - batch.global_batch_size, 'padding row')} of zero weight left out"
    )
    return (
        f"{plural(batch.global_batch_size, 'sample')} = {batch.micro_batch_size} per micro-batch"
        f" x {plural(batch.world_size, 'worker')} x {plural(batch.micro_steps, 'micro-step')}{padding};"
        f" {plural(batch.tokens_per_step, 'token')} a step"
    )


def resume_words(resume: ResumePoint, steps: int) -> str:
    if resume.checkpoint is None:
        return "from the seeded initial weights"
    return f"after step {resume.step:,} of {steps:,}, from {resume.checkpoint}"


def training_line(row: StepRow, *, steps: int, eta_s: float | None, memory_limit_bytes: int | None = None) -> str:
    """`step 120/5000 2.4% | loss 3.4210 | gnorm 0.91 | lr 2.9e-4 | 512,340 tok/s (64,042/worker) | ...`"""
    speed = f"{row.tokens_per_s:,.0f} tok/s"
    if row.world_size and row.world_size > 1:
        speed += f" ({row.tokens_per_s / row.world_size:,.0f}/worker)"
    parts = [
        f"step {row.step}/{steps} {percent(row.step, steps)}",
        f"loss {row.loss:.4f}",
        f"gnorm {row.grad_norm:.2f}",
        f"lr {rate_text(row.lr)}",
        speed,
    ]
    if row.mfu is not None:
        parts.append(f"mfu {100 * row.mfu:.1f}%")
    if row.memory_bytes is not None:
        parts.append(f"mem {memory_words(row.memory_bytes, memory_limit_bytes)}")
    parts.append(f"data {percent(row.data_s, row.step_s)}")
    if eta_s is not None:
        parts.append(f"eta {duration_text(eta_s)}")
    return " | ".join(parts)


def memory_words(used_bytes: int, limit_bytes: int | None) -> str:
    """`61.3/80G 77%` where the limit is known, else `61.3 GiB`."""
    if not limit_bytes:
        return bytes_text(used_bytes)
    return f"{used_bytes / 2**30:.1f}/{limit_bytes / 2**30:.0f}G {100 * used_bytes / limit_bytes:.0f}%"


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole > 0 else "0.0%"


def since_last_line(rows: Sequence[StepRow]) -> StepRow:
    """The last row, with the speed of all of them: one step's alone says little on a busy machine."""
    row, seconds = rows[-1], sum(row.step_s for row in rows)
    if seconds <= 0:
        return row
    mfu = None if row.mfu is None else sum((row.mfu or 0.0) * row.step_s for row in rows) / seconds
    speed = sum(row.tokens for row in rows) / seconds
    return replace(row, tokens_per_s=speed, mfu=mfu, step_s=seconds, data_s=sum(row.data_s for row in rows))


def eta_s(recent_step_s: Sequence[float], remaining_steps: int) -> float | None:
    """Seconds until the end at the median of the recent steps; None before the first one."""
    return median(recent_step_s) * remaining_steps if recent_step_s else None


def evaluation_line(row: StepRow) -> str | None:
    """None where the row has no evaluation."""
    if row.eval_loss is None:
        return None
    parts = [f"evaluation at step {row.step}: loss {row.eval_loss:.4f}"]
    if row.eval_perplexity is not None:
        parts.append(f"perplexity {row.eval_perplexity:.2f}")
    if row.eval_bits_per_byte is not None:
        parts.append(f"{row.eval_bits_per_byte:.4f} bits per byte")
    return " | ".join(parts)


def event_line(record: Mapping[str, Any]) -> str | None:
    """An event in plain words; None for those that the summary, the training lines or the end tell."""
    words = _EVENT_WORDS.get(record["event"])
    return words(record) if words else None


def _rank_died(record: Mapping[str, Any]) -> str:
    if record.get("signal") is not None:
        how = f"was killed by signal {record['signal']} ({signal_name(record['signal'])})"
    elif record.get("exit_code") is not None:
        how = f"exited with code {record['exit_code']}"
    else:
        how = "died"
    message = (record.get("message") or "").strip()
    step = "" if record.get("step") is None else f" after step {record['step']}"
    reason = f": {message}" if message else ""
    return f"rank {record.get('rank', '?')} on {record.get('node', '?')} {how}{step}{reason}"


def _attempt_started(record: Mapping[str, Any]) -> str | None:
    if record["attempt"] <= 1:
        return None
    step = record.get("resume_step") or 0
    at = f"step {step}" if step else "the initial weights"
    lost = record.get("steps_lost")
    again = f", {plural(lost, 'step')} {'is' if lost == 1 else 'are'} repeated" if lost else ""
    return f"restarting as attempt {record['attempt']} from {at}{again}"


def _recovered(record: Mapping[str, Any]) -> str:
    lost = record.get("steps_lost", 0)
    return (
        f"training again after {duration_text(record.get('downtime_s') or 0.0)}"
        f" ({plural(lost, 'step')} repeated, restored from {record.get('source', 'disk')})"
    )


def _rollback(record: Mapping[str, Any]) -> str:
    windows = record.get("windows") or []
    skipped = f", without the data of {plural(len(windows), 'window')}" if windows else ""
    names = f" ({', '.join(map(str, windows))})" if 0 < len(windows) <= _WINDOWS_NAMED else ""
    return f"going back to step {record.get('to_step', 0)}{skipped}{names}: branch {record.get('branch', '?')}"


def _checkpoint_committed(record: Mapping[str, Any]) -> str:
    details = []
    if record.get("bytes") is not None:
        details.append(bytes_text(record["bytes"]))
    if record.get("seconds") is not None:
        details.append(f"in {duration_text(record['seconds'])}")
    return f"checkpoint at step {record['step']}: {record.get('path', '')} {' '.join(details)}".rstrip()


_WINDOWS_NAMED = 8

_EVENT_WORDS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "attempt_started": _attempt_started,
    "rank_died": _rank_died,
    "node_lost": lambda record: (
        f"node {record.get('node', '?')} " + (f"is left: {record['why']}" if record.get("why") else "was lost")
    ),
    "hang_detected": lambda record: (
        f"rank {record.get('rank', '?')} on {record.get('node', '?')} hangs: {record.get('message', 'no progress')}"
    ),
    "recovered": _recovered,
    "checkpoint_committed": _checkpoint_committed,
    "checkpoint_failed": lambda record: (
        f"the checkpoint at step {record['step']} failed: {record.get('message', 'no reason given')}"
    ),
    "checkpoint_rejected": lambda record: (
        f"checkpoint {record.get('path', '?')} was set aside: {record.get('message', 'no reason given')}"
    ),
    "anomaly": lambda record: f"step {record['step']}: {record.get('message', 'its numbers are bad')}",
    "rollback": _rollback,
    "straggler": lambda record: (
        f"rank {record.get('rank', '?')} on {record.get('node', '?')} is slow: it {record.get('message', '')}"
    ),
    "gpu_fault": lambda record: (
        f"the GPU of rank {record.get('rank', '?')} on {record.get('node', '?')} {record.get('message', '')}"
    ),
    "preemption_notice": lambda record: "told to stop: saving after this step, then leaving",
    "requeued": lambda record: "put back into the queue",
    "resized": lambda record: (
        f"going on with {plural(record.get('to', 0), 'worker')} instead of {record.get('from')}: {record.get('why')}"
    ),
}


def goodput_words(goodput: Goodput) -> str:
    """`93.1% of 12m04s; start 40s, recovery 1.20s`: where the rest went, what is below a thousandth left out."""
    parts = sorted(goodput.seconds().items(), key=lambda part: -part[1])
    told = [
        f"{part.replace('_', ' ')} {duration_text(seconds)}"
        for part, seconds in parts
        if part != Spent.productive and seconds >= goodput.wall_s / 1000 and seconds > 0
    ]
    share = percent(goodput.spent_us[Spent.productive], goodput.wall_us)
    return f"{share} of {duration_text(goodput.wall_s)}{'; ' if told else ''}{', '.join(told)}"


def end_lines(facts: EndFacts) -> list[str]:
    """What came out, and what to do next."""
    per_s = facts.tokens / facts.elapsed_s if facts.elapsed_s > 0 else 0.0
    state = "finished" if facts.is_finished else f"stopped at step {facts.step:,} of {facts.steps:,}"
    rows = {
        "run": f"{facts.run_id} {state}",
        "tokens": f"{count_text(facts.tokens)} in {duration_text(facts.elapsed_s)}: {per_s:,.0f} tok/s",
        "final loss": "none: no step was done" if facts.loss is None else f"{facts.loss:.4f}",
        "restarts": (f"{facts.restarts}, costing {duration_text(facts.downtime_s)}" if facts.restarts else "none"),
        "goodput": goodput_words(facts.goodput),
        "checkpoint": facts.checkpoint or "none",
        **({"memory": facts.memory} if facts.memory else {}),
        **({"snapshots": facts.snapshots} if facts.snapshots else {}),
        "run folder": facts.run_folder,
    }
    lines = [f"{name:<12}{value}" for name, value in rows.items()]
    if facts.is_finished:
        verbs = (f"generate {facts.run_folder}", f"evaluate {facts.run_folder}", f"export {facts.run_folder}")
        return lines + [f"{'next':<12}phalanx {verb}" for verb in verbs]
    return lines + ([f"{'next':<12}{facts.resume_command}"] if facts.resume_command else [])
