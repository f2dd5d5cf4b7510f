"""What a report says, in words and tables; page.py and markdown.py give it a form. Plan half."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.memory import held_bytes
from orchestrator.observe.goodput import Spent
from orchestrator.observe.units import bytes_text, count_text, duration_text, plural
from orchestrator.observe.wording import batch_words, percent
from orchestrator.report.incidents import Incident, Kind, costliest, incidents
from orchestrator.report.record import RunRecord, differences
from orchestrator.report.saved import Saved, best_of, saved_checkpoints
from orchestrator.spec import RunPlan

SHOWN_INCIDENTS = 50
SHOWN_CHECKPOINTS = 10
FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Table:
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()
    """Columns that are set to the right."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    label: str
    value: str
    more: str = ""


SPENT_WORDS: dict[Spent, tuple[str, str]] = {
    Spent.productive: ("training", "steps done for the first time"),
    Spent.recomputed: ("run again", "steps that a failure had lost"),
    Spent.data_wait: ("waiting for data", "of those steps, the slowest rank's wait for its batch"),
    Spent.snapshot_stall: ("snapshots", "training stood still for a snapshot"),
    Spent.evaluation: ("evaluation", "on the validation split"),
    Spent.checkpoint: ("last checkpoint", "all steps done, waiting for storage"),
    Spent.start: ("start", "from the driver's start to its first step"),
    Spent.recovery: ("recovery", "from a failure to the first step after it"),
    Spent.idle: ("idle", "no driver was there, or nothing is known"),
}


def tiles(record: RunRecord) -> list[Tile]:
    """The few figures that matter most."""
    history, goodput = record.history, record.goodput
    loss, speed = history.newest("loss"), history.median("tokens_per_s")
    evaluated = history.sparse("eval_loss").y
    failures = [incident for incident in incidents(record.events) if incident.kind is Kind.failure]
    down_s = sum(incident.downtime_s or 0.0 for incident in failures)
    of = "" if record.steps is None else f"of {record.steps:,}"
    tokens = float(history.values("tokens").sum())
    return [
        Tile("Step", f"{record.step:,}", of),
        Tile("Loss", _number(loss), f"validation {evaluated[-1]:.4f}" if evaluated.size else "training"),
        Tile("Tokens", count_text(tokens), _epochs(record)),
        Tile("Speed", "-" if speed is None else f"{speed:,.0f}", "tokens/s, median"),
        Tile(
            "Goodput",
            "-" if goodput.ratio is None else f"{100 * goodput.ratio:.1f}%",
            f"of {duration_text(goodput.wall_s)}",
        ),
        Tile("Failures", f"{len(failures):,}", f"{duration_text(down_s)} down" if failures else "none"),
    ]


def what_was_run(record: RunRecord) -> Table:
    plan = record.plan
    rows = [("run folder", record.path)]
    if plan is not None:
        tokens = plan.steps * plan.batch.tokens_per_step
        rows += [
            ("model", f"{plan.model.name}: {count_text(plan.parameters)} parameters"),
            ("tokens", f"{count_text(tokens)} in {plural(plan.steps, 'step')}: {tokens / plan.parameters:.1f} each"),
            ("batch", batch_words(plan.batch)),
            ("engine", f"ZeRO stage {plan.zero_stage}, {plan.precision} on {plan.device}"),
            ("fingerprint", plan.fingerprint),
        ]
    if record.overrides:
        rows.append(("typed", shlex.join(["phalanx", record.verb, *record.overrides])))
    return Table((), tuple(rows))


def config_changes(record: RunRecord) -> Table:
    """Key by key, what was typed against the recipe."""
    if record.recipe is None:
        rows = tuple((word,) for word in record.overrides)
        return Table(("typed",), rows, note="The recipe itself was not recorded; config.yaml has every value.")
    changed = differences(record.config, record.recipe)
    rows3 = tuple((key, _value(before), _value(after)) for key, before, after in changed)
    note = "" if changed else "Nothing was changed: the recipe as it stands."
    return Table(("key", "recipe", "this run"), rows3, note=note)


def where_time_went(record: RunRecord) -> Table:
    goodput = record.goodput
    rows = tuple(
        (SPENT_WORDS[part][0], duration_text(us / 1e6), percent(us, goodput.wall_us), SPENT_WORDS[part][1])
        for part, us in _spent(record)
    )
    whole = f"Wall time {duration_text(goodput.wall_s)}; every microsecond of it is booked once."
    return Table(("where", "time", "share", "what it is"), rows, frozenset({1, 2}), whole)


def _spent(record: RunRecord) -> list[tuple[Spent, int]]:
    """Parts that took any time, in the order in which the bar shows them."""
    return [(part, record.goodput.spent_us[part]) for part in SPENT_WORDS if record.goodput.spent_us[part] > 0]


def time_shares(record: RunRecord) -> list[tuple[str, str, float]]:
    """(key, words, share 0 to 1) for the bar."""
    wall = record.goodput.wall_us or 1
    return [(str(part), SPENT_WORDS[part][0], us / wall) for part, us in _spent(record)]


def failures(record: RunRecord, found: Sequence[Incident]) -> Table:
    """What went wrong, why, and what it cost; of very many the costliest."""
    shown = costliest(found, SHOWN_INCIDENTS)
    step_s = record.history.median("step_s") or 0.0
    rows = tuple(_incident_row(incident, step_s) for incident in shown)
    note = ""
    if len(shown) < len(found):
        note = f"The {len(shown)} costliest of {len(found):,}; events.jsonl has all."
    if not found:
        note = "Nothing went wrong."
    numbers = frozenset({0, 1, 4, 5})
    return Table(("#", "step", "what happened", "cause", "down", "run again", "restored from"), rows, numbers, note)


def _incident_row(incident: Incident, step_s: float) -> tuple[str, ...]:
    words = incident.words
    if incident.follow_ons:
        words += f" ({plural(incident.follow_ons, 'other event')} followed from it)"
    lost = plural(incident.steps_lost, "step")
    if incident.steps_lost and step_s:
        lost += f", {duration_text(incident.steps_lost * step_s)}"
    has_price = incident.downtime_s is not None
    return (
        str(incident.number),
        f"{incident.step:,}",
        words,
        incident.cause,
        duration_text(incident.downtime_s) if incident.downtime_s is not None else "-",
        lost if has_price else "-",
        incident.source or "-",
    )


def end_digest(record: RunRecord) -> str:
    """What a failed run said at its end; empty for others."""
    if record.state != "failed":
        return ""
    failed = [event for event in record.events if event["event"] == "run_failed"]
    return str(failed[-1].get("digest") or "") if failed else ""


def checkpoints(record: RunRecord, saved: Sequence[Saved]) -> Table:
    best = best_of(saved)
    rows = tuple(
        (
            f"{one.step:,}",
            _number(one.loss),
            _number(one.eval_loss),
            "-" if one.num_bytes is None else bytes_text(one.num_bytes),
            "-" if one.seconds is None else duration_text(one.seconds),
            f"{one.path} (best)" if one is best else one.path,
        )
        for one in _newest_and(saved, best)
    )
    failed = sum(event["event"] == "checkpoint_failed" for event in record.events)
    rejected = sum(event["event"] == "checkpoint_rejected" for event in record.events)
    notes = []
    if len(rows) < len(saved):
        notes.append(f"The newest {SHOWN_CHECKPOINTS} and the best of {len(saved):,}.")
    if failed:
        notes.append(f"{plural(failed, 'checkpoint')} could not be written.")
    if rejected:
        notes.append(f"{plural(rejected, 'damaged checkpoint')} set aside.")
    if not saved:
        notes.append("None yet.")
    header = ("step", "loss", "validation", "size", "took", "where")
    return Table(header, rows, frozenset({0, 1, 2, 3, 4}), " ".join(notes))


def _newest_and(saved: Sequence[Saved], best: Saved | None) -> list[Saved]:
    newest = list(saved[-SHOWN_CHECKPOINTS:])
    return newest if best is None or best in newest else [best, *newest]


def predictions(record: RunRecord) -> Table:
    """The plan's figures against what was measured."""
    plan, history = record.plan, record.history
    rows: list[tuple[str, ...]] = []
    note = ""
    if plan is not None:
        memory = plan.memory_by_stage.get(plan.zero_stage)
        measured = history.largest("memory_bytes")
        if plan.process_bytes is not None:
            rows.append(_compared("memory of a rank, peak", plan.process_bytes, measured, bytes_text))
        elif memory is not None:
            rows.append(_compared("memory of a rank, peak", held_bytes(memory, plan.device), measured, bytes_text))
        step_s = None if plan.predicted is None else plan.predicted.time.total
        rows.append(_compared("step", step_s, history.median("step_s"), duration_text))
        state_bytes = plan.parameters * FP32_BYTES * _numbers_per_parameter(record)
        sizes = [one.num_bytes for one in saved_checkpoints(record) if one.num_bytes is not None]
        rows.append(_compared("checkpoint", state_bytes, sizes[-1] if sizes else None, bytes_text))
        note = _prediction_note(plan)
    return Table(("what", "predicted", "measured", "measured / predicted"), tuple(rows), frozenset({1, 2, 3}), note)


def _prediction_note(plan: RunPlan) -> str:
    notes = []
    if plan.predicted is None:
        notes.append(f"A step's time can't be predicted for {plan.precision} on this {plan.device}.")
    else:
        notes.append(f"A step's time is predicted from the {plan.predicted.basis}; measured is the median.")
    if plan.device == "cpu":
        notes.append(
            "The memory is the whole process's, with its snapshot slots, Python, libraries and what malloc keeps."
            if plan.process_bytes is not None
            else "The measured memory is the whole process's, Python and its libraries included; the plan's is not."
        )
    return " ".join(notes)


def _numbers_per_parameter(record: RunRecord) -> int:
    """fp32 master and moments."""
    if record.config.get("optim.name") != "sgd":
        return 3
    return 2 if record.config.get("optim.momentum") else 1


def _compared(what: str, predicted: float | None, measured: float | None, text: Any) -> tuple[str, ...]:
    ratio = "-" if not predicted or measured is None else f"{measured / predicted:.2f}"
    cells = ("-" if value is None else text(value) for value in (predicted, measured))
    return (what, *cells, ratio)


def data(record: RunRecord) -> Table:
    manifest = record.manifest
    rows = [("path", str(record.config.get("data.path") or "-"))]
    if manifest is not None:
        for name, split in (("train", manifest.train), ("validation", manifest.validation)):
            shards = plural(len(split.shards), "shard")
            rows.append(
                (name, f"{count_text(split.tokens)} tokens of {plural(split.documents, 'document')} in {shards}")
            )
        tokenizer = manifest.tokenizer
        rows.append(
            ("tokenizer", f"{tokenizer.vocab_size:,} tokens, {tokenizer.file}, xxh3 {tokenizer.xxh3_128[:16]}")
        )
    seen = float(record.history.values("tokens").sum())
    rows.append(("read", f"{count_text(seen)} tokens{', ' + _epochs(record) if _epochs(record) else ''}"))
    wait = record.goodput.spent_us[Spent.data_wait]
    rows.append(
        ("waited for", f"{duration_text(wait / 1e6)}, {percent(wait, record.goodput.wall_us)} of the wall time")
    )
    return Table((), tuple(rows))


def _epochs(record: RunRecord) -> str:
    if record.manifest is None or not record.manifest.train.tokens:
        return ""
    return f"{record.history.values('tokens').sum() / record.manifest.train.tokens:.2f} epochs"


def environment(record: RunRecord) -> Table:
    facts = record.environment
    rows = [(name, str(facts[name])) for name in ("host", "platform", "cpus", "python") if name in facts]
    git: Mapping[str, Any] = facts.get("git") or {}
    if git:
        state = "with changes that are not committed" if git.get("is_dirty") else "clean"
        rows.append(("git", f"{git.get('commit', '?')} ({git.get('branch') or 'no branch'}), {state}"))
    rows += [(name, str(version)) for name, version in (facts.get("versions") or {}).items()]
    return Table((), tuple(rows))


def commands(record: RunRecord) -> list[tuple[str, str]]:
    """(what for, what to type)."""
    run = shlex.quote(record.path)
    best = best_of(saved_checkpoints(record))
    lines = [
        ("text from it", f"phalanx generate {run} --prompt 'def '"),
        ("loss and perplexity", f"phalanx evaluate {run}"),
        ("Hugging Face folder", f"phalanx export {run} exported"),
        ("check every byte of its checkpoints", f"phalanx ckpt verify {run}"),
    ]
    if best is None:
        lines = [("what its ranks printed", f"phalanx logs {run}")]
    if record.state not in ("finished", "running") and record.overrides:
        lines.insert(0, ("go on with it", shlex.join(["phalanx", record.verb, *record.overrides])))
    return [
        *lines,
        ("the same again as a new run", f"phalanx rerun {run}"),
        ("this report anew", f"phalanx report {run}"),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _value(value: Any) -> str:
    """As one would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
