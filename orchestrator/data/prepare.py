"""Text to token shards, in units that are each done or not: what was interrupted goes on where it stopped."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import xxhash
from tokenizers import Tokenizer

from orchestrator.config import DataConfig
from orchestrator.data import files, workfolder
from orchestrator.data.documents import Document, Skipped, read_documents
from orchestrator.data.manifest import Manifest, Split, TokenizerFacts
from orchestrator.data.sources import (
    SourceFile,
    Unit,
    cut_units,
    list_sources,
    source_patterns,
    sources_fingerprint,
)
from orchestrator.data.tokenize import (
    MIN_VOCAB_SIZE,
    end_of_text_id,
    load_tokenizer,
    train_tokenizer,
    vocab_size_of,
)
from orchestrator.data.units import (
    MAX_NAMED_SKIPS,
    SplitPart,
    UnitFailure,
    UnitJob,
    UnitResult,
    finished_unit,
    prepare_unit,
)
from orchestrator.errors import DataError
from orchestrator.observe.units import megabytes_text, plural

DEFAULT_VOCAB_SIZE = 8192
_UINT16_VOCAB_SIZE = 1 << 16
_SAMPLED_UNITS = 64
"""The tokenizer's sample is drawn from about so many places of a large corpus."""

UnitTask = Callable[[Unit], UnitResult | UnitFailure]
MapTasks = Callable[[UnitTask, Sequence[Unit]], Generator[UnitResult | UnitFailure, None, None]]
"""Runs a task for each unit, anywhere; gives results as they complete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far the tokenizing is; bytes as stored in the source files."""

    bytes_total: int
    units_total: int
    bytes_done: int = 0
    units_done: int = 0
    documents: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    manifest: Manifest
    is_new: bool
    """False: it was all there and nothing was written."""


def map_in_process(task: UnitTask, units: Sequence[Unit]) -> Generator[UnitResult | UnitFailure, None, None]:
    """One unit after the other, here."""
    for unit in units:
        yield task(unit)


def prepare_data(
    config: DataConfig,
    model_vocab_size: int | None,
    *,
    map_tasks: MapTasks,
    say: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> Prepared:
    """Prepare `config.source` into `config.path`; does nothing where that is done.

    `say` gets lines of news, `on_progress` the state after each finished unit. Raises DataError; what is
    finished is kept, and the same call goes on from there.
    """
    vocab_size = next((size for size in (config.vocab_size, model_vocab_size) if size), DEFAULT_VOCAB_SIZE)
    _check_settings(config, vocab_size)
    target = str(config.path)
    sources = list_sources(config.source)
    workfolder.refuse_sources_inside(target, sources)
    identity = _identity(config, vocab_size, sources)
    manifest = workfolder.finished_manifest(target, identity)
    if manifest is not None:
        return Prepared(manifest, is_new=False)
    with workfolder.held(target):
        manifest = workfolder.finished_manifest(target, identity)  # somebody else may have been faster
        if manifest is not None:
            return Prepared(manifest, is_new=False)
        return _prepare(config, vocab_size, sources, identity, map_tasks=map_tasks, say=say, on_progress=on_progress)


def _prepare(
    config: DataConfig,
    vocab_size: int,
    sources: Sequence[SourceFile],
    identity: dict[str, Any],
    *,
    map_tasks: MapTasks,
    say: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> Prepared:
    """With the folder held."""
    target = str(config.path)
    units = cut_units(sources)
    facts = _lay_tokenizer(config, vocab_size, units, identity, say)
    job = UnitJob(
        target=target,
        tokenizer=facts,
        dtype="uint16" if facts.vocab_size <= _UINT16_VOCAB_SIZE else "uint32",
        text_field=config.text_field,
        validation_fraction=config.validation_fraction,
        on_bad=config.on_bad,
    )
    results = _run_units(job, units, map_tasks, say, on_progress)
    manifest = _manifest(job, identity, results)
    if not manifest.train.tokens:
        workfolder.abandon(target)
        raise _no_text(config, sources, manifest)
    workfolder.commit(target, manifest)
    return Prepared(manifest, is_new=True)


def _check_settings(config: DataConfig, vocab_size: int) -> None:
    problems = []
    if not config.path:
        problems.append("data.path is not set; name the folder or URL to write: data.path=prepared/mine")
    if not config.source:
        problems.append("data.source is not set; name a file, a glob or a URL: data.source='corpus/*.txt'")
    if not 0 <= config.validation_fraction < 1:
        problems.append(
            f"data.validation_fraction={config.validation_fraction} must be at least 0 and below 1; "
            "0.01 keeps a hundredth of the documents"
        )
    if config.tokenizer_sample_bytes < 1:
        problems.append(
            f"data.tokenizer_sample_bytes={config.tokenizer_sample_bytes} must be at least 1; the default is 64000000"
        )
    if config.tokenizer is None and vocab_size < MIN_VOCAB_SIZE:
        key = "data.vocab_size" if config.vocab_size else "model.vocab_size"
        problems.append(
            f"{key}={vocab_size} is too small for a byte-level tokenizer, which needs 256 bytes and an end "
            f"of text; set data.vocab_size={MIN_VOCAB_SIZE} or more"
        )
    if problems:
        raise DataError(*problems)


def _identity(config: DataConfig, vocab_size: int, sources: Sequence[SourceFile]) -> dict[str, Any]:
    """Key -> value of all that decides what comes out; it goes into the manifest. Raises DataError."""
    identity: dict[str, Any] = {
        "data.source": source_patterns(config.source),
        "data.text_field": config.text_field,
        "data.on_bad": config.on_bad.value,
        "data.validation_fraction": config.validation_fraction,
        "num_files": len(sources),
        "num_bytes": sum(file.bytes for file in sources),
        "files_fingerprint": sources_fingerprint(sources),
    }
    if config.tokenizer is None:
        identity["data.tokenizer"] = None
        identity["data.vocab_size"] = vocab_size
        identity["data.tokenizer_sample_bytes"] = config.tokenizer_sample_bytes
        return identity
    tokenizer = load_tokenizer(config.tokenizer)
    found = vocab_size_of(tokenizer)
    if config.vocab_size is not None and config.vocab_size != found:
        raise DataError(
            f"data.vocab_size={config.vocab_size} does not match data.tokenizer={config.tokenizer}, "
            f"which has {found}; leave data.vocab_size out"
        )
    end_of_text_id(tokenizer, config.tokenizer)
    identity["data.tokenizer"] = f"tokenizer.json with xxh3_128 {files.file_xxh3_128(config.tokenizer)}"
    return identity


def _lay_tokenizer(
    config: DataConfig,
    vocab_size: int,
    units: Sequence[Unit],
    identity: dict[str, Any],
    say: Callable[[str], None],
) -> TokenizerFacts:
    """Begin the work folder with its tokenizer: loaded, trained, or from the run that was interrupted."""
    target = str(config.path)
    url = files.join(target, workfolder.TOKENIZER_FILE)
    has_begun = files.file_bytes(files.join(target, workfolder.WORK_FILE)) is not None
    workfolder.begin(target, identity)
    if has_begun and files.file_bytes(url) is not None:
        say(f"tokenizer: {url}, from the run that was interrupted")
    elif config.tokenizer is not None:
        files.write_atomically(url, files.read_bytes(config.tokenizer))
    else:
        files.write_atomically(url, _train(config, vocab_size, units, say).to_str().encode())
    tokenizer = load_tokenizer(url)
    return TokenizerFacts(
        file=workfolder.TOKENIZER_FILE,
        vocab_size=vocab_size_of(tokenizer),
        eos_token_id=end_of_text_id(tokenizer, config.tokenizer or url),
        xxh3_128=files.file_xxh3_128(url),
    )


def _train(config: DataConfig, vocab_size: int, units: Sequence[Unit], say: Callable[[str], None]) -> Tokenizer:
    sample_bytes = min(config.tokenizer_sample_bytes, sum(unit.bytes for unit in units))
    say(f"tokenizer: training {vocab_size:,} tokens on {megabytes_text(sample_bytes)} of the source")
    texts = sample_texts(units, config.text_field, config.tokenizer_sample_bytes)
    tokenizer = train_tokenizer(texts, vocab_size)
    found = vocab_size_of(tokenizer)
    if found < vocab_size:
        say(f"tokenizer: the source yields {found:,} tokens, fewer than the {vocab_size:,} asked for")
    return tokenizer


def sample_texts(units: Sequence[Unit], text_field: str, sample_bytes: int) -> Iterator[str]:
    """About `sample_bytes` of documents, the same on every run: a small corpus whole, a large one in places.

    Takes the units in the order of a hash, and of each no more than its share.
    """
    held_bytes = 0
    by_hash = sorted(units, key=lambda unit: xxhash.xxh3_64_intdigest(unit.index.to_bytes(8, "little")))
    is_small = sum(unit.bytes for unit in units) <= sample_bytes
    share = sample_bytes if is_small else -(-sample_bytes // min(len(units), _SAMPLED_UNITS))
    for unit in by_hash:
        share_left = share
        items = (item for piece in unit.pieces for item in read_documents(piece, text_field))
        for item in items:
            if not isinstance(item, Document):
                continue
            yield item.text
            held_bytes += len(item.utf8)
            share_left -= len(item.utf8)
            if held_bytes >= sample_bytes:
                return
            if share_left <= 0:
                break


def _run_units(
    job: UnitJob,
    units: Sequence[Unit],
    map_tasks: MapTasks,
    say: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> list[UnitResult]:
    """Results of all units in order, of which those are worked on that no earlier run finished."""
    results = {unit.index: found for unit in units if (found := finished_unit(job, unit)) is not None}
    if results:
        say(f"{len(results):,} of {len(units):,} units were finished by the run that was interrupted")
    pending = [unit for unit in units if unit.index not in results]
    progress = Progress(bytes_total=sum(unit.bytes for unit in units), units_total=len(units))
    for result in results.values():
        progress = _advance(progress, result)
    on_progress(progress)
    if pending:
        with closing(map_tasks(partial(prepare_unit, job), pending)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, UnitFailure):
                    raise DataError(outcome.problem)
                results[outcome.index] = outcome
                progress = _advance(progress, outcome)
                on_progress(progress)
    return [results[unit.index] for unit in units]


def _advance(progress: Progress, result: UnitResult) -> Progress:
    return replace(
        progress,
        bytes_done=progress.bytes_done + result.source_bytes,
        units_done=progress.units_done + 1,
        documents=progress.documents + result.train.documents + result.validation.documents,
        tokens=progress.tokens + result.train.tokens + result.validation.tokens,
    )


def _manifest(job: UnitJob, identity: dict[str, Any], results: Sequence[UnitResult]) -> Manifest:
    skipped = [asdict(item) for result in results for item in result.skipped]
    source = {
        **identity,
        "skipped": sum(result.num_skipped for result in results),
        "skipped_names": skipped[:MAX_NAMED_SKIPS],
    }
    return Manifest(
        dtype=job.dtype,
        tokenizer=job.tokenizer,
        train=_split([result.train for result in results]),
        validation=_split([result.validation for result in results]),
        source=source,
    )


def _split(parts: Sequence[SplitPart]) -> Split:
    return Split(
        documents=sum(part.documents for part in parts),
        tokens=sum(part.tokens for part in parts),
        text_bytes=sum(part.text_bytes for part in parts),
        shards=tuple(part.shard for part in parts if part.shard is not None),
    )


def _no_text(config: DataConfig, sources: Sequence[SourceFile], manifest: Manifest) -> DataError:
    if in_validation := manifest.validation.documents:
        return DataError(
            f"data.validation_fraction={config.validation_fraction} takes {_all_of(in_validation)} and leaves none "
            "to train on; set a smaller one, or 0"
        )
    files_text, count = plural(len(sources), "file"), manifest.source["skipped"]
    if not count:
        return DataError(
            f"data.source={config.source} holds no text: {files_text}, no document; name files with text in them"
        )
    first = Skipped(**manifest.source["skipped_names"][0])
    reasons = f"{first}" if count == 1 else f"the first of {count:,} that can't be read is {first}"
    return DataError(
        f"data.source={config.source} holds no text: {files_text}, no document; {reasons}; "
        "mend it, or name other files"
    )


def _all_of(documents: int) -> str:
    return "the only document" if documents == 1 else f"all {documents:,} documents"
