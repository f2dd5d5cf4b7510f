"""`phalanx ckpt`: list, verify, prune, export and import checkpoints."""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from launch.cli_help import parser
from launch.runs import DEFAULT_ROOT, checkpoint_settings, checkpoint_store, find_run, is_run
from orchestrator.checkpoint.commit import (
    Standing,
    StepStanding,
    committed_steps,
    prune,
    step_standings,
    steps_to_prune,
)
from orchestrator.checkpoint.layout import step_folder, step_of
from orchestrator.checkpoint.lineage import WHOLE, Lineage
from orchestrator.checkpoint.reader import CheckpointReader, read_marker
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import logical_digest, verify
from orchestrator.codec import decode, encode
from orchestrator.config import CheckpointConfig
from orchestrator.control.pruning import metric_of, retention_of
from orchestrator.control.rollback import lineage_in
from orchestrator.errors import EXIT_FAILED, CheckpointError, ConfigError, PhalanxError, StoreError
from orchestrator.observe.aligned import aligned
from orchestrator.observe.units import bytes_text, duration_text
from orchestrator.runfolder import RunFolder

EXAMPLES = """  phalanx ckpt ls quickstart-1a2b3c4d
  phalanx ckpt verify quickstart-1a2b3c4d --digest
  phalanx ckpt verify runs/quickstart-1a2b3c4d/checkpoints/step_00001000
  phalanx ckpt verify s3://bucket/checkpoints --step 1000 --json
  phalanx ckpt prune quickstart-1a2b3c4d --keep 2 --dry-run
  phalanx ckpt export quickstart-1a2b3c4d exported/ --optimizer
  phalanx ckpt import llama-folder/ --run my-llama"""
_WITH_PARSERS_OF_THEIR_OWN = {
    "export": ("launch.ckpt_export", "a checkpoint as plain fp32 safetensors by logical name"),
    "import": ("launch.ckpt_import", "weights of DeepSpeed or Hugging Face as a starting point"),
}
"""Verb -> (module, summary): imported when they are typed, because they load much."""
_COLUMNS = ("step", "age", "size", "files", "world", "stage", "attempt", "loss", "state")


def run(argv: list[str]) -> int:
    """`phalanx ckpt ARGV`; the exit code."""
    try:
        if argv[:1] and argv[0] in _WITH_PARSERS_OF_THEIR_OWN:
            module, _ = _WITH_PARSERS_OF_THEIR_OWN[argv[0]]
            return int(importlib.import_module(module).run(argv[1:]))
        options = _parser().parse_args(argv)
        return int(options.act(options))
    except PhalanxError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parsing = parser("ckpt", "List, verify and prune the checkpoints of a run; export and import them.", EXAMPLES)
    verbs = parsing.add_subparsers(required=True, metavar="ls|verify|prune|export|import")
    ls = _add(verbs, "ls", _ls, "what checkpoints there are", "phalanx ckpt ls RUN --json")
    checks = _add(
        verbs,
        "verify",
        _verify,
        "re-read every byte; exit 1 on any damage",
        "phalanx ckpt verify RUN --step 1000 --digest",
    )
    checks.add_argument("--step", type=int, help="only this step (default: all that were committed)")
    checks.add_argument(
        "--digest",
        action="store_true",
        help="print, last, one xxh3_128 over the logical tensors of the newest step verified",
    )
    for verb in (ls, checks):
        verb.add_argument("--json", action="store_true", help="one JSON object")
    prunes = _add(verbs, "prune", _prune, "delete all but the newest", "phalanx ckpt prune RUN --keep 2 --dry-run")
    prunes.add_argument(
        "--keep",
        type=_positive,
        metavar="N",
        help="how many to keep (default: the run's checkpoint.keep_last)",
    )
    prunes.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    for name, (_, summary) in _WITH_PARSERS_OF_THEIR_OWN.items():
        verbs.add_parser(name, help=summary)
    return parsing


def _add(verbs: Any, name: str, act: Any, summary: str, example: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("run", help="a run's id or folder, a folder or URL of checkpoints, or one step's folder")
    verb.add_argument("--root", default=DEFAULT_ROOT, help="where runs lie (default: %(default)s)")
    verb.set_defaults(act=act)
    return verb


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be 1 or more: the last checkpoint is never deleted")
    return number


class _Target(NamedTuple):
    store: Store
    step: int | None
    """Where one step's folder was named."""
    run: RunFolder | None

    @property
    def lineage(self) -> Lineage:
        """What the run has left behind."""
        return WHOLE if self.run is None else lineage_in(self.run.branches)


def _target(options: argparse.Namespace) -> _Target:
    name: str = options.run
    parent, _, last = name.rstrip("/").rpartition("/")
    step = step_of(last)
    if step is not None:
        return _Target(Store(parent or ("/" if name.startswith("/") else ".")), step, None)
    path = Path(name)
    if "://" in name or (_holds_steps(path) and not is_run(path)):
        return _Target(Store(name), None, None)
    found = find_run(name, options.root)
    return _Target(checkpoint_store(found), None, found)


def _holds_steps(path: Path) -> bool:
    try:
        return path.is_dir() and any(step_of(child.name) is not None for child in path.iterdir())
    except OSError:
        return False


def _ls(options: argparse.Namespace) -> int:
    target = _target(options)
    store, only, _ = target
    standings = [item for item in step_standings(store, target.lineage) if only in (None, item.step)]
    rows = [_row(store, item, time.time()) for item in standings]
    if options.json:
        print(json.dumps({"url": store.where(""), "checkpoints": rows}, indent=2))
    elif rows:
        print(_table(rows))
    else:
        print(f"{store.where('')} holds no checkpoints")
    return 0


def _row(store: Store, item: StepStanding, now_s: float) -> dict[str, Any]:
    row: dict[str, Any] = {"step": item.step, "state": str(item.standing), "reason": item.reason or None}
    if item.standing is Standing.torn:
        return row
    try:
        marker = read_marker(store, item.step)
    except StoreError:
        raise
    except CheckpointError as error:
        return row | {"state": "damaged", "reason": item.reason or str(error)}
    return row | {
        "age_s": round(now_s - marker.time, 1),
        "bytes": marker.total_bytes,
        "files": len(marker.files),
        "world_size": marker.world_size,
        "zero_stage": marker.zero_stage,
        "attempt": marker.attempt,
        "loss": marker.loss,
        "run_id": marker.run_id,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [_COLUMNS, *(_cells(row) for row in rows)]
    return "\n".join(aligned(cells, right=range(len(_COLUMNS) - 1)))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    state = f"{row['state']}: {row['reason']}" if row["reason"] else row["state"]
    if "bytes" not in row:
        return (str(row["step"]), *["-"] * (len(_COLUMNS) - 2), state)
    loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
    counts = [str(row[key]) for key in ("files", "world_size", "zero_stage", "attempt")]
    return (str(row["step"]), duration_text(max(0.0, row["age_s"])), bytes_text(row["bytes"]), *counts, loss, state)


def _verify(options: argparse.Namespace) -> int:
    target = _target(options)
    store, named, found_run = target
    step = options.step if options.step is not None else named
    standings = step_standings(store, target.lineage)
    steps = [item.step for item in standings if item.standing is not Standing.torn]
    if step is not None:
        steps = [step]
    if not steps:
        raise CheckpointError(f"{store.where('')} holds no committed checkpoint")
    rejected = {item.step: item.reason for item in standings if item.standing is Standing.rejected}
    problems: dict[int, list[str]] = {}
    for each in steps:
        problems[each] = verify(store, each)
        if not options.json:
            _print_verified(store, each, problems[each], each in rejected)
    key_file = _checkpoint_config(found_run).key_file
    digest = _digest(store, problems, rejected, step, key_file) if options.digest else None
    if options.json:
        found = [{"step": each, "problems": problems[each], "rejected": rejected.get(each)} for each in steps]
        print(json.dumps({"url": store.where(""), "checkpoints": found, "digest": digest}, indent=2))
    elif digest:
        print(digest)
    return EXIT_FAILED if any(problems.values()) else 0


def _print_verified(store: Store, step: int, problems: list[str], is_rejected: bool) -> None:
    note = " (set aside)" if is_rejected else ""
    if problems:
        print(f"{store.where(step_folder(step))}{note}: damaged")
        print("\n".join(f"  {problem}" for problem in problems), flush=True)
        return
    marker = read_marker(store, step)
    size = bytes_text(marker.total_bytes)
    print(f"{store.where(step_folder(step))}{note}: {len(marker.files)} files, {size}, good", flush=True)


def _digest(
    store: Store, problems: dict[int, list[str]], rejected: dict[int, str], step: int | None, key_file: str | None
) -> str | None:
    """Of the named step, else of the newest that a run would resume from; None where that is damaged."""
    good = [each for each, found in problems.items() if not found and (each == step or each not in rejected)]
    return logical_digest(CheckpointReader(store, read_marker(store, max(good)), key_file)) if good else None


def _prune(options: argparse.Namespace) -> int:
    target = _target(options)
    store, step, found = target
    if step is not None:
        raise ConfigError(f"{options.run} is one checkpoint; name the run or the folder that holds it")
    config = _checkpoint_config(found)
    if options.keep is not None:
        config.keep_last = options.keep
    retention, metric = retention_of(config), metric_of(found, config) if found else None
    steps = steps_to_prune(store, retention, metric, lineage=target.lineage)
    _check_that_a_good_one_stays(store, steps, target.lineage)
    if not options.dry_run:
        steps = prune(store, retention, metric, lineage=target.lineage)
    verb = "would delete" if options.dry_run else "deleted"
    for each in steps:
        print(f"{verb} {store.where(step_folder(each))}")
    if not steps:
        print(f"nothing to delete in {store.where('')}: {_kept(config)} kept")
    return 0


def _check_that_a_good_one_stays(store: Store, steps: list[int], lineage: Lineage) -> None:
    """Reads every byte of the newest that would stay. Raises CheckpointError where none of them is good: what is to
    be deleted may be the last that is."""
    committed = committed_steps(store, lineage)
    staying = [step for step in reversed(committed) if step not in steps]
    if len(staying) < len(committed) and all(verify(store, step) for step in staying):
        raise CheckpointError(
            f"nothing is deleted from {store.where('')}: of what would stay, nothing is good; see phalanx ckpt verify"
        )


def _checkpoint_config(run: RunFolder | None) -> CheckpointConfig:
    """The run's own settings where there is a run and it has any."""
    settings = checkpoint_settings(run) if run else {}
    try:
        return decode(CheckpointConfig, encode(CheckpointConfig()) | settings)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{run.config if run else ''}: checkpoint: {error}; restore it from plan.json") from error


def _kept(config: CheckpointConfig) -> str:
    if not config.keep_last:
        return "all are"
    rules = [f"the newest {config.keep_last}"]
    rules += [f"every {config.keep_every_steps:,} steps"] if config.keep_every_steps else []
    rules += [f"the best {config.keep_best} by {config.best_metric}"] if config.keep_best else []
    return f"{' and '.join(rules)} are"
