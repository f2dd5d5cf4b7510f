"""A plan as text for people: pure, so that `train`, `submit` and a golden test can show the same words."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil

from orchestrator.config import Offload, RunConfig
from orchestrator.control.snapshotmemory import (
    disk_words,
    every,
    fitting_snapshots,
    has_standbys,
    process_bytes,
    standby_words,
)
from orchestrator.fit import Fit
from orchestrator.memory import (
    ASSUMED_FOR,
    FP32_BYTES,
    activations_by_layer,
    fillable_bytes,
    gigabytes,
    held_bytes,
    logits_bytes,
    num_moments,
)
from orchestrator.observe.aligned import aligned
from orchestrator.observe.units import count_text, duration_text, flops_text, plural
from orchestrator.observe.wording import batch_words
from orchestrator.plan import memory_limit_bytes, rank_load
from orchestrator.simulate.costs import STORE_S, CheckpointTime, checkpoint_time
from orchestrator.spec import Bundle, Placement, RunPlan
from orchestrator.steptime import model_flops_utilisation


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    lines: tuple[str, ...]
    marked: int | None = None
    """Index of the line that a terminal shows bold."""


def total_tokens(plan: RunPlan) -> int:
    return plan.steps * plan.batch.tokens_per_step


def total_flops(plan: RunPlan) -> int:
    return total_tokens(plan) * plan.flops_per_token


def plan_sections(
    plan: RunPlan, placement: Placement, config: RunConfig, *, price_per_hour: float | None = None
) -> list[Section]:
    """All that `phalanx plan` prints, in order; `price_per_hour` is one device's."""
    time_lines = _time_lines(plan, price_per_hour)
    return [
        Section("Run", (f"{plan.run_id}, fingerprint {plan.fingerprint}",)),
        Section("Batch", tuple(_batch_lines(plan))),
        Section("Model", tuple(_model_lines(plan))),
        *([Section("Time", tuple(time_lines))] if time_lines else []),
        Section("Placement", tuple(_placement_lines(placement))),
        _memory_section(plan, config),
        _activations_section(plan, config),
        Section("Snapshots", tuple(_snapshot_lines(plan, placement, config))),
        Section("DeepSpeed", tuple(json.dumps(plan.ds_config, indent=2).splitlines())),
    ]


def _batch_lines(plan: RunPlan) -> list[str]:
    schedule = "" if plan.schedule_steps == plan.steps else f", schedule of {plan.schedule_steps:,} steps"
    return [
        batch_words(plan.batch),
        f"{count_text(total_tokens(plan))} tokens in {plural(plan.steps, 'step')}{schedule}",
    ]


def _model_lines(plan: RunPlan) -> list[str]:
    model = plan.model
    return [
        f"{model.name}: {plan.parameters:,} parameters ({count_text(plan.parameters)}), "
        f"{total_tokens(plan) / plan.parameters:,.3g} tokens per parameter",
        f"vocabulary {model.vocab_size or 0:,}, sequence {plan.batch.seq_len:,}, {plan.precision} on {plan.device}",
        f"{flops_text(plan.flops_per_token)} per token, {flops_text(total_flops(plan))} in all",
    ]


def _time_lines(plan: RunPlan, price_per_hour: float | None) -> list[str]:
    """Empty where nothing is known of the device."""
    if plan.predicted is None:
        return []
    time = plan.predicted.time
    parts = {
        "forward and backward": time.forward_backward,
        "recomputing": time.recompute,
        "communication that is not hidden": time.communication,
        "update": time.update,
        "overhead": time.overhead,
    }
    shown = [f"{name} {seconds_text(seconds)}" for name, seconds in parts.items() if seconds]
    utilisation = model_flops_utilisation(plan, time.total)
    speed = f"{plan.batch.tokens_per_step / time.total:,.0f} tokens/s"
    if utilisation is not None:
        peak = (plan.peak_flops_per_worker or 0) / 1e12
        speed += f", {utilisation:.0%} of {plan.batch.world_size:,} x {peak:,.1f} TFLOP/s"
    training_s = plan.steps * time.total
    hours = hours_words(training_s * plan.batch.world_size / 3600, plan.device, price_per_hour)
    return [
        f"about {seconds_text(time.total)} a step: {', '.join(shown)}",
        speed,
        f"{duration_text(training_s)} for all steps: {hours}",
        f"from the {plan.predicted.basis}",
    ]


def hours_words(device_hours: float, device: str, price_per_hour: float | None) -> str:
    """`297,191 GPU-hours, 742,978 at 2.5 an hour`."""
    price = "" if price_per_hour is None else f", {device_hours * price_per_hour:,.0f} at {price_per_hour:g} an hour"
    unit = "GPU-hours" if device == "cuda" else "worker-hours"
    return f"{device_hours:,.0f} {unit}{price}" if device_hours >= 10 else f"{device_hours:.2g} {unit}{price}"


def fit_section(fits: Sequence[Fit], plan: RunPlan, shown: int = 8) -> Section:
    """The fastest ways to train it that fit, and the words to add to the command for the first."""
    rows: list[tuple[str, ...]] = [
        ("ZeRO", "micro-batch", "recomputes", "offload", "memory", "a step", "tokens/s", "MFU")
    ]
    for fit in fits[:shown]:
        step_s = fit.time.total
        utilisation = model_flops_utilisation(plan, step_s)
        rows.append(
            (
                str(fit.load.zero_stage),
                str(fit.load.micro_batch_size),
                "yes" if fit.load.activation_checkpointing else "-",
                "-" if fit.load.offload is Offload.none else fit.load.offload.value,
                gigabytes(fit.memory_bytes),
                seconds_text(step_s),
                f"{plan.batch.tokens_per_step / step_s:,.0f}",
                "-" if utilisation is None else f"{utilisation:.0%}",
            )
        )
    words = " ".join(f"{key}={value}" for key, value in fits[0].overrides().items())
    more = f"{len(fits)} ways fit; the fastest by estimate" if len(fits) > 1 else "one way fits"
    return Section("Fit", (*_table(rows), more, words), marked=1)


def seconds_text(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _placement_lines(placement: Placement) -> list[str]:
    """Neighbouring nodes with equal bundles share a row."""
    rows: list[tuple[str, ...]] = [("nodes", "workers each", "CPUs each", "GPUs each", "ranks")]
    node = rank = 0
    for bundle, group in groupby(placement.bundles):
        count = len(list(group))
        rows.append(_bundle_row(bundle, node, rank, count))
        node, rank = node + count, rank + count * bundle.workers
    return _table(rows)


def _bundle_row(bundle: Bundle, node: int, rank: int, count: int) -> tuple[str, ...]:
    return (
        _span(node, count),
        f"{bundle.workers:,}",
        f"{bundle.cpus:,}",
        f"{bundle.gpus:,}",
        _span(rank, count * bundle.workers),
    )


def _memory_section(plan: RunPlan, config: RunConfig) -> Section:
    rows: list[tuple[str, ...]] = [
        ("ZeRO", "parameters", "gradients", "optimizer", "activations", "logits", "buffers", "total", "host")
    ]
    for stage, memory in plan.memory_by_stage.items():
        sizes = (
            memory.parameters,
            memory.gradients,
            memory.optimizer,
            memory.activations,
            memory.logits,
            memory.buffers,
            memory.device_total,
            memory.host,
        )
        mark = "> " if stage == plan.zero_stage else "  "
        rows.append((f"{mark}{stage}", *(gigabytes(size) if size else "-" for size in sizes)))
    lines = _table(rows)
    limit = memory_limit_bytes(config, device=plan.device)
    if limit is not None:
        lines.append(_fitting_words(plan, limit))
    marked = 1 + list(plan.memory_by_stage).index(plan.zero_stage)
    return Section("Memory of one rank", tuple(lines), marked=marked)


def _activations_section(plan: RunPlan, config: RunConfig) -> Section:
    """By layer, under each policy; its totals are the memory table's activations and logits."""
    load = rank_load(config, plan.model, device=plan.device)
    found, logits = activations_by_layer(load), logits_bytes(load)
    rows: list[tuple[str, ...]] = [
        ("checkpointing", "a block", plural(found.num_layers, "block"), "one recomputed", "ends", "logits", "total")
    ]
    for is_checkpointed, word in ((False, "off"), (True, "on")):
        each = found.block_input if is_checkpointed else found.block
        sizes = (
            each,
            found.num_layers * each,
            found.block if is_checkpointed else 0,
            found.ends,
            logits,
            found.kept(is_checkpointed=is_checkpointed) + logits,
        )
        mark = "> " if is_checkpointed is load.activation_checkpointing else "  "
        rows.append((f"{mark}{word}", *(gigabytes(size) if size else "-" for size in sizes)))
    return Section("Activations of one micro-batch", tuple(_table(rows)), marked=1 + load.activation_checkpointing)


def _fitting_words(plan: RunPlan, limit: int) -> str:
    """On a GPU the sum includes what is assumed for fragmentation."""
    needed = held_bytes(plan.memory_by_stage[plan.zero_stage], plan.device)
    assumed = limit - fillable_bytes(limit, plan.device)
    verb = "fits in" if needed + assumed <= limit else "does not fit in"
    words = f"stage {plan.zero_stage} {verb} {gigabytes(limit)}: {(needed + assumed) / limit:.0%}"
    return f"{words}, with {gigabytes(assumed)} assumed for {ASSUMED_FOR}" if assumed else words


def _snapshot_lines(plan: RunPlan, placement: Placement, config: RunConfig) -> list[str]:
    """What the agents hold in host memory, and what a checkpoint takes in storage."""
    limit = config.cluster.memory_bytes_per_node
    fitting = fitting_snapshots(config, plan, placement, limit)
    memory = fitting.memory
    held = f"with its ranks {gigabytes(memory.node_bytes)}"
    lines = [
        f"{memory.slots} slots of {gigabytes(memory.slot_bytes)} for each rank"
        + (f" and {memory.copies} copies for each of a peer node's" if memory.copies else "")
        + f": {gigabytes(memory.snapshot_bytes)} of a node's memory, {held}"
        + (f" of {gigabytes(limit)}" if limit is not None else ""),
        *_checkpoint_lines(plan, placement, config),
    ]
    if has_standbys(config, plan, memory, limit):
        lines.append(standby_words(memory))
    if config.checkpoint.local_dir is not None:
        lines.append(disk_words(config, memory))
    process = process_bytes(plan, memory)
    if process is not None:
        whole = "with its slots, Python, libraries and what malloc keeps"
        lines.append(f"a rank's process takes {gigabytes(process)}, {whole}")
    if fitting.note is not None:
        lines.append(fitting.note)
    if config.snapshot.every_steps == 0:
        lines.append("taken only where a checkpoint is due: a lost rank costs the steps since then")
    return lines


def checkpoint_bytes(plan: RunPlan, config: RunConfig) -> int:
    """In storage: fp32 masters and moments."""
    return plan.parameters * FP32_BYTES * (1 + num_moments(config.optim))


def _checkpoint_lines(plan: RunPlan, placement: Placement, config: RunConfig) -> list[str]:
    """Its size, its time at the assumed rate, and the share of the run's time that it takes at its interval."""
    num_bytes, every_steps = checkpoint_bytes(plan, config), config.checkpoint.every_steps
    time = checkpoint_time(num_bytes, len(placement.bundles))
    rate = f"{gigabytes(int(time.bytes_per_s))}/s and {seconds_text(STORE_S)}"
    lines = [
        f"a checkpoint takes {gigabytes(num_bytes)}: {seconds_text(time.write_s)} to write, "
        f"{seconds_text(time.read_s)} to verify and read, assumed at {rate}"
    ]
    shares = checkpoint_shares(plan, config, time)
    if shares is None:
        return lines
    written, lost = shares
    if written > 1:
        least = ceil(written * every_steps)
        way_out = f"storage keeps up from checkpoint.every_steps={least}"
        return [*lines, f"{every(every_steps)} one would not be written before the next is due: {way_out}"]
    longer = f"beside the steps; the run takes {_share_text(lost)} longer"
    return [*lines, f"{every(every_steps)}: for {_share_text(written)} of the time one is written, {longer}"]


def _share_text(share: float) -> str:
    return f"{share:.2%}" if share >= 1e-4 else "under 0.01%"


def checkpoint_shares(plan: RunPlan, config: RunConfig, time: CheckpointTime) -> tuple[float, float] | None:
    """Of the run's time, at the configured interval: while one is written, and what the steps lose by it. None where
    no step's time is known, and where only the last one is written."""
    if plan.predicted is None or config.checkpoint.every_steps == 0:
        return None
    interval_s = config.checkpoint.every_steps * plan.predicted.time.total
    return time.write_s / interval_s, time.stall_s / interval_s


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A name and numbers a row."""
    return aligned(rows, right=range(1, len(rows[0])))


def _span(first: int, count: int) -> str:
    return f"{first:,}" if count == 1 else f"{first:,} to {first + count - 1:,}"
