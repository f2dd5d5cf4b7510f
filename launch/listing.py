"""`phalanx list`: the models, experiments and clusters to choose from, and the runs there have been."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.cli_help import parser
from launch.compose import choice_file, choices, compose
from launch.suggest import not_known
from model.config import ModelConfig
from model.sizing import num_parameters
from orchestrator.errors import ConfigError
from orchestrator.observe.aligned import aligned
from orchestrator.observe.jsonlines import read_records
from orchestrator.runfolder import RunFolder

DEFAULT_VOCABULARY = 8192
"""What `prepare` trains where neither the model nor the data names a vocabulary."""
KINDS = ("models", "experiments", "clusters", "runs")

EXAMPLES = """  phalanx list
  phalanx list models
  phalanx list runs --root /scratch/runs
  phalanx list experiments --json | jq '.[].name'"""

Row = dict[str, Any]


def run(argv: list[str]) -> int:
    """Print one table, or all but the runs. Raises ConfigError for a kind that is not known."""
    reader = parser("list", "List what there is to choose from.", EXAMPLES, f"[{'|'.join(KINDS)}] [--json]")
    reader.add_argument("kind", nargs="?", help="what to list; without it, models, experiments and clusters")
    reader.add_argument("--json", action="store_true", help="a list of objects instead of a table")
    reader.add_argument("--root", default="runs", help="where runs lie (run.root)")
    options = reader.parse_args(argv)
    if options.kind is not None and options.kind not in KINDS:
        raise ConfigError(not_known(options.kind, options.kind, KINDS))
    tables = {kind: rows(kind, Path(options.root)) for kind in ([options.kind] if options.kind else KINDS[:3])}
    if options.json:
        print(json.dumps(tables[options.kind] if options.kind else tables, indent=2))
        return 0
    for place, (kind, found) in enumerate(tables.items()):
        print("\n" * (place > 0) + _table(kind, found, options.root))
    return 0


def rows(kind: str, root: Path) -> list[Row]:
    """One dict per line of the table, in its order; numbers as numbers."""
    if kind == "models":
        return sorted((_model_row(name) for name in choices("model")), key=lambda row: row["parameters"])
    if kind == "experiments":
        return [_experiment_row(name) for name in choices("experiment")]
    if kind == "clusters":
        return [_cluster_row(name) for name in choices("cluster")]
    return [_run_row(RunFolder(folder)) for folder in sorted(root.glob("*/")) if (folder / "config.yaml").is_file()]


def _model_row(name: str) -> Row:
    model = compose([f"model={name}"]).config.model
    return {
        "name": name,
        "parameters": _parameters(model),
        "layers": model.num_layers,
        "width": model.hidden_size,
        "heads": model.num_heads,
        "seq": model.max_seq_len,
        "vocabulary": model.vocab_size,
        "note": _note("model", name),
    }


def _experiment_row(name: str) -> Row:
    config = compose([f"experiment={name}"]).config
    return {
        "name": name,
        "model": config.model.name,
        "parameters": _parameters(config.model),
        "workers": config.cluster.num_workers,
        "zero": config.parallel.zero_stage,
        "precision": str(config.train.precision),
        "steps": config.train.steps,
        "batch": config.train.global_batch_size,
        "seq": config.train.seq_len or config.model.max_seq_len,
        "note": _note("experiment", name),
    }


def _cluster_row(name: str) -> Row:
    cluster = compose([f"cluster={name}"]).config.cluster
    return {
        "name": name,
        "workers": cluster.num_workers,
        "per_node": cluster.workers_per_node,
        "device": str(cluster.device),
        "hardware": cluster.hardware,
        "note": _note("cluster", name),
    }


def _run_row(folder: RunFolder) -> Row:
    events = list(read_records(folder.events)) if folder.events.exists() else []
    last: Row = events[-1] if events else {}
    steps = [event["step"] for event in events if event.get("step") is not None]
    return {
        "name": folder.run_id,
        "started": events[0]["t"] if events else None,
        "attempts": max((event["attempt"] for event in events), default=0),
        "step": max(steps, default=None),
        "last_event": last.get("event"),
        "at": last.get("t"),
    }


def _parameters(model: ModelConfig) -> int:
    return num_parameters(replace(model, vocab_size=model.vocab_size or DEFAULT_VOCABULARY))


def _note(group: str, name: str) -> str:
    """The file's first comment."""
    lines = choice_file(group, name).read_text().splitlines()
    comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def _table(kind: str, found: list[Row], root: str) -> str:
    if not found:
        return f"no runs in {root}; phalanx train starts one"
    header = [name.replace("_", " ") for name in found[0]]
    lines = [header, *([_cell(name, value) for name, value in row.items()] for row in found)]
    numbers = {place for place, name in enumerate(found[0]) if any(isinstance(row[name], int) for row in found)}
    text = "\n".join(aligned(lines, right=numbers))
    if kind == "models":
        text += f"\n\n*: the tokenizer's vocabulary; parameters are counted with {DEFAULT_VOCABULARY:,}"
    return f"{kind}\n{text}"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "*" if name == "vocabulary" else "-"
    if name in ("started", "at"):
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
    if name == "parameters":
        for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
            if value >= size:
                return f"{value / size:.1f}{unit}"
    return f"{value:,}" if isinstance(value, int) else str(value)
