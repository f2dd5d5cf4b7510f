"""One unit of preparation: read its documents, tokenize them, write a shard per split and a record."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import xxhash
from tokenizers import Tokenizer

from orchestrator.config import OnBad
from orchestrator.data import files
from orchestrator.data.documents import Document, Skipped, read_documents
from orchestrator.data.manifest import Shard, TokenizerFacts
from orchestrator.data.sources import Unit
from orchestrator.data.tokenize import encode, load_tokenizer
from orchestrator.errors import DataError

UNITS_FOLDER = "units"
MAX_NAMED_SKIPS = 100
"""Skipped files and documents that are named; the rest are counted."""
_BATCH_BYTES = 1 << 21
_BATCH_DOCUMENTS = 512
_HASH_RANGE = 2**64


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitJob:
    """What is the same for every unit of a preparation."""

    target: str
    """`data.path`: the folder or URL that shards are written to."""
    tokenizer: TokenizerFacts
    dtype: str
    text_field: str
    validation_fraction: float
    on_bad: OnBad


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitPart:
    """A unit's share of a split."""

    documents: int
    tokens: int
    text_bytes: int
    shard: Shard | None
    """None where no document of the unit fell into the split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitResult:
    index: int
    source_bytes: int
    train: SplitPart
    validation: SplitPart
    num_skipped: int
    skipped: tuple[Skipped, ...]
    """The first of them."""

    def to_json(self, fingerprint: str) -> str:
        return json.dumps({"fingerprint": fingerprint, "result": asdict(self)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, fingerprint: str) -> "UnitResult | None":
        """The result that a record holds; None where it was made from something else."""
        try:
            raw = json.loads(text)
            if raw["fingerprint"] != fingerprint:
                return None
            result = raw["result"]
            parts = {name: _split_part(result[name]) for name in ("train", "validation")}
            skipped = tuple(Skipped(**item) for item in result["skipped"])
            return UnitResult(**{**result, **parts, "skipped": skipped})
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class UnitFailure:
    """A unit that can't be prepared. A value, because exceptions change their class between machines."""

    index: int
    problem: str


def prepare_unit(job: UnitJob, unit: Unit) -> UnitResult | UnitFailure:
    """Tokenize a unit and write its shards, then its record: a unit with a record is done.

    Side effects: files in `job.target`. Needs the tokenizer there.
    """
    try:
        result = _tokenize_unit(job, unit)
        record = result.to_json(unit_fingerprint(job, unit))
        files.write_atomically(record_url(job, unit), record.encode())
    except DataError as error:
        return UnitFailure(unit.index, str(error))
    return result


def finished_unit(job: UnitJob, unit: Unit) -> UnitResult | None:
    """What an earlier run made of the unit, if it is whole and was made from the same."""
    try:
        record = files.read_bytes(record_url(job, unit)).decode(errors="replace")
    except FileNotFoundError:
        return None
    result = UnitResult.from_json(record, unit_fingerprint(job, unit))
    if result is None:
        return None
    shards = [part.shard for part in (result.train, result.validation) if part.shard is not None]
    is_whole = all(files.file_bytes(files.join(job.target, shard.file)) == shard.bytes for shard in shards)
    return result if is_whole else None


def unit_fingerprint(job: UnitJob, unit: Unit) -> str:
    """Changes with the unit's files, the tokenizer and every setting; not with the place it is written to."""
    parts = json.dumps([asdict(replace(job, target="")), asdict(unit)], sort_keys=True)
    return xxhash.xxh3_128_hexdigest(parts.encode())


def record_url(job: UnitJob, unit: Unit) -> str:
    return files.join(job.target, UNITS_FOLDER, f"{unit.index:05d}.json")


def is_validation(document: Document, fraction: float) -> bool:
    """By a hash of the text: the same document is on the same side in any order and in any corpus."""
    return xxhash.xxh3_64_intdigest(document.utf8) < fraction * _HASH_RANGE


class _ShardWriter:
    """A unit's part of one split; the file is begun with the first document."""

    def __init__(self, folder: str, file_name: str) -> None:
        self._folder, self._name = folder, file_name
        self._file: files.AtomicFile | None = None
        self._digest = xxhash.xxh3_128()
        self._documents = self._tokens = self._bytes = self._text_bytes = 0

    def add(self, document: Document, tokens: Any) -> None:
        if self._file is None:
            self._file = files.AtomicFile(files.join(self._folder, self._name))
        data = tokens.tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._documents += 1
        self._tokens += tokens.size
        self._bytes += len(data)
        self._text_bytes += len(document.utf8)

    def commit(self) -> SplitPart:
        shard = None
        if self._file is not None:
            self._file.commit()
            shard = Shard(file=self._name, tokens=self._tokens, bytes=self._bytes, xxh3_128=self._digest.hexdigest())
        return SplitPart(documents=self._documents, tokens=self._tokens, text_bytes=self._text_bytes, shard=shard)

    def discard(self) -> None:
        if self._file is not None:
            self._file.discard()


def _tokenize_unit(job: UnitJob, unit: Unit) -> UnitResult:
    tokenizer = _tokenizer(files.join(job.target, job.tokenizer.file), job.tokenizer.xxh3_128)
    train = _ShardWriter(job.target, f"train_{unit.index:05d}.bin")
    validation = _ShardWriter(job.target, f"validation_{unit.index:05d}.bin")
    skipped = _Skips(job.on_bad)
    try:
        for batch in _batches(job, unit, skipped):
            texts = [document.text for document in batch]
            encoded = encode(tokenizer, texts, job.tokenizer.eos_token_id, job.dtype)
            for document, tokens in zip(batch, encoded, strict=True):
                writer = validation if is_validation(document, job.validation_fraction) else train
                writer.add(document, tokens)
        return UnitResult(
            index=unit.index,
            source_bytes=unit.bytes,
            train=train.commit(),
            validation=validation.commit(),
            num_skipped=skipped.count,
            skipped=tuple(skipped.named),
        )
    except BaseException:
        train.discard()
        validation.discard()
        raise


class _Skips:
    """Names and counts what is left out, or refuses it."""

    def __init__(self, on_bad: OnBad) -> None:
        self.count = 0
        self.named: list[Skipped] = []
        self._on_bad = on_bad

    def add(self, skipped: Skipped) -> None:
        if self._on_bad == OnBad.error:
            raise DataError(
                f"{skipped.where} {skipped.reason}, and data.on_bad=error; "
                "mend it, or leave such out with data.on_bad=skip"
            )
        self.count += 1
        if len(self.named) < MAX_NAMED_SKIPS:
            self.named.append(skipped)


def _batches(job: UnitJob, unit: Unit, skipped: _Skips) -> Iterator[Sequence[Document]]:
    """Documents in batches that are large enough to be tokenized fast and small enough to hold."""
    batch: list[Document] = []
    batch_bytes = 0
    for piece in unit.pieces:
        for item in read_documents(piece, job.text_field):
            if isinstance(item, Skipped):
                skipped.add(item)
                continue
            batch.append(item)
            batch_bytes += len(item.utf8)
            if batch_bytes >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
                yield batch
                batch, batch_bytes = [], 0
    if batch:
        yield batch


@lru_cache(maxsize=1)
def _tokenizer(url: str, checksum: str) -> Tokenizer:
    """Loaded once per process. The checksum is part of the key, as the file may change under its name."""
    if (found := files.file_xxh3_128(url)) != checksum:
        raise DataError(f"{url} changed while the data was prepared: xxh3_128 {found}, expected {checksum}")
    return load_tokenizer(url)


def _split_part(raw: dict[str, Any]) -> SplitPart:
    return SplitPart(**{**raw, "shard": raw["shard"] and Shard(**raw["shard"])})
