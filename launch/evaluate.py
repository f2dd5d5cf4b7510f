"""`phalanx evaluate`: loss, perplexity and bits per byte of a checkpoint on the validation split."""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from launch.artifact import Artifact, add_artifact_arguments, best_device, open_artifact
from launch.cli_help import parser
from orchestrator.data.manifest import Manifest
from orchestrator.data.shards import TokenReader, check_shards
from orchestrator.errors import ConfigError, DataError

BATCH_TOKENS = 8192
"""Tokens per forward pass: enough to keep a device busy, little enough for a laptop."""

EXAMPLES = """  phalanx evaluate quickstart-1a2b3c4d
  phalanx evaluate runs/quickstart-1a2b3c4d --step 200 --rows 64
  phalanx evaluate runs/quickstart-1a2b3c4d --data s3://bucket/corpus --json | jq .bits_per_byte

Bits per byte compares models with different tokenizers: the loss in bits, by the bytes of the text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    run_id: str
    step: int
    data_path: str
    rows: int
    tokens: int
    """Target tokens."""
    loss: float
    """Mean over the target tokens, in nats."""
    perplexity: float
    bits_per_byte: float


def run(argv: list[str]) -> int:
    """Print the evaluation. Raises ConfigError or DataError for what can't work."""
    options = _parser().parse_args(argv)
    if options.rows is not None and options.rows < 1:
        raise ConfigError(f"--rows={options.rows} must be 1 or more")
    result = evaluate(open_artifact(options), options.rows)
    if options.json:
        print(json.dumps(asdict(result)))
        return 0
    print(
        f"{result.run_id} at step {result.step:,}, validation split of {result.data_path}: "
        f"{result.rows:,} rows, {result.tokens:,} tokens\n"
        f"  loss           {result.loss:.4f}\n"
        f"  perplexity     {result.perplexity:.2f}\n"
        f"  bits per byte  {result.bits_per_byte:.4f}"
    )
    return 0


def evaluate(artifact: Artifact, max_rows: int | None) -> Evaluation:
    """Evaluate the first `max_rows` rows of the validation split (None: all), documents as in training."""
    from model.objective import evaluate_rows

    manifest, data_path = artifact.manifest, str(artifact.data_path)
    check_shards(data_path, manifest)
    reader = TokenReader(data_path, manifest, "validation", artifact.seq_len)
    if reader.num_rows == 0:
        raise DataError(
            f"data.path={data_path} has {manifest.validation.tokens:,} validation tokens, a row needs "
            f"{artifact.seq_len + 1:,}; prepare the data with a larger data.validation_fraction"
        )
    rows = reader.num_rows if max_rows is None else min(max_rows, reader.num_rows)
    device = best_device()
    eos_token_id = manifest.tokenizer.eos_token_id if artifact.isolates_documents else None
    loss_sum, tokens = evaluate_rows(
        artifact.load(device), _with_bar(_batches(reader, rows), rows), device=device, eos_token_id=eos_token_id
    )
    return Evaluation(
        run_id=artifact.run_id,
        step=artifact.step,
        data_path=data_path,
        rows=rows,
        tokens=tokens,
        loss=loss_sum / tokens,
        perplexity=perplexity(loss_sum / tokens),
        bits_per_byte=bits_per_byte(loss_sum, tokens, manifest),
    )


def perplexity(loss: float) -> float:
    """e to the mean loss; infinite where that is beyond a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(loss_sum: float, tokens: int, manifest: Manifest) -> float:
    """Summed loss (nats) in bits, by the bytes of text that `tokens` of the validation split stand for."""
    text_bytes = manifest.validation.text_bytes * tokens / manifest.validation.tokens
    return loss_sum / math.log(2) / text_bytes


def _batches(reader: TokenReader, rows: int) -> Iterator[np.ndarray]:
    """Rows 0..rows-1 in order: int64 [b, seq_len + 1]."""
    batch = max(1, BATCH_TOKENS // reader.row_tokens)
    for start in range(0, rows, batch):
        yield reader.rows(np.arange(start, min(start + batch, rows))).astype(np.int64)


def _with_bar(batches: Iterator[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same, with a bar on standard error where that is a terminal: a whole split may take minutes."""
    console = Console(stderr=True)
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=rows)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch))


def _parser() -> argparse.ArgumentParser:
    parsing = parser("evaluate", "Loss, perplexity and bits per byte on the validation split.", EXAMPLES)
    add_artifact_arguments(parsing)
    parsing.add_argument("--rows", type=int, help="read only so many rows (default: the whole split)")
    parsing.add_argument("--json", action="store_true", help="one JSON object instead of text")
    return parsing
