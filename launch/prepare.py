"""`phalanx prepare`: text to token shards, as Ray tasks of one core each."""

import os
import shlex
from collections.abc import Generator, Sequence

from rich.progress import MofNCompleteColumn

from launch.progress import ProgressView, plain_console
from orchestrator.config import ClusterConfig, RunConfig
from orchestrator.data.manifest import Manifest
from orchestrator.data.prepare import Prepared, Progress, UnitTask, prepare_data
from orchestrator.data.sources import Unit
from orchestrator.data.units import UnitFailure, UnitResult
from orchestrator.observe.units import megabytes_text, plural

_SKIPS_SHOWN = 10
"""Skipped files and documents that are named here; the manifest names more."""


def prepare(config: RunConfig) -> int:
    """Prepare `data.source` into `data.path`; the exit code. Raises DataError.

    Side effects: writes the folder; starts or joins Ray where there is something to tokenize.
    """
    console = plain_console()
    try:
        with ProgressView(console, "tokenizing", MofNCompleteColumn()) as view:
            prepared = prepare_data(
                config.data,
                config.model.vocab_size,
                map_tasks=lambda task, units: _map_on_ray(config.cluster, task, units),
                say=lambda line: console.print(line, soft_wrap=True),
                on_progress=lambda progress: view.show(progress.units_done, progress.units_total, _counts(progress)),
            )
    except KeyboardInterrupt:
        console.print("interrupted: what is finished is kept, and the same command goes on with the rest")
        raise
    for line in summary(str(config.data.path), prepared):
        console.print(line, soft_wrap=True)
    return 0


def _counts(progress: Progress) -> str:
    return (
        f"{megabytes_text(progress.bytes_done)} of {megabytes_text(progress.bytes_total)}, "
        f"{plural(progress.documents, 'document')}, {progress.tokens:,} tokens"
    )


def summary(path: str, prepared: Prepared) -> list[str]:
    """What was prepared and what to do next, as lines."""
    manifest = prepared.manifest
    documents = manifest.train.documents + manifest.validation.documents
    tokens = manifest.train.tokens + manifest.validation.tokens
    text_bytes = manifest.train.text_bytes + manifest.validation.text_bytes
    state = "prepared" if prepared.is_new else "already prepared, nothing to do"
    shards = len(manifest.train.shards) + len(manifest.validation.shards)
    return [
        f"data.path={path} {state}",
        f"  source      {plural(manifest.source['num_files'], 'file')}, {plural(documents, 'document')}, "
        f"{megabytes_text(text_bytes)} of text",
        f"  tokens      {tokens:,} in {plural(shards, 'shard')} of {manifest.dtype}, "
        f"{text_bytes / max(1, tokens):.2f} bytes per token",
        f"  tokenizer   {manifest.tokenizer.vocab_size:,} tokens",
        f"  validation  {plural(manifest.validation.documents, 'document')}, {manifest.validation.tokens:,} tokens "
        f"({100 * manifest.validation.tokens / max(1, tokens):.1f}%)",
        *_validation_note(manifest, documents),
        *_skipped_lines(manifest),
        f"next: {shlex.join(['phalanx', 'train', f'data.path={path}'])}",
    ]


def _validation_note(manifest: Manifest, documents: int) -> list[str]:
    """Where chance has left no document to evaluate on: better known now than when training is to evaluate."""
    fraction = manifest.source["data.validation_fraction"]
    if manifest.validation.documents or not fraction:
        return []
    return [
        f"  note        data.validation_fraction={fraction} of {plural(documents, 'document')} is none: there is "
        "nothing to evaluate on; take a larger one, or cut the text into more documents (a text file is one)"
    ]


def _skipped_lines(manifest: Manifest) -> list[str]:
    count, named = manifest.source["skipped"], manifest.source["skipped_names"]
    if not count:
        return []
    shown = named[:_SKIPS_SHOWN]
    lines = [f"  skipped     {count:,} that can't be read:"]
    lines += [f"    {item['where']}: {item['reason']}" for item in shown]
    if count > len(shown):
        more = "; manifest.json names more of them" if len(named) > len(shown) else ""
        lines.append(f"    and {count - len(shown):,} more{more}")
    return lines


def _map_on_ray(
    cluster: ClusterConfig, task: UnitTask, units: Sequence[Unit]
) -> Generator[UnitResult | UnitFailure, None, None]:
    from orchestrator.fleet.tasks import map_tasks

    def on_one_core(unit: Unit) -> UnitResult | UnitFailure:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        return task(unit)

    yield from map_tasks(on_one_core, units, cluster)
