"""The prepared data's manifest.json as a value. Plan half: reading the file is the caller's business."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.errors import DataError

FORMAT = "phalanx-tokens-1"
FILE_NAME = "manifest.json"
DTYPES = ("uint16", "uint32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One flat file of tokens, without a header: `tokens` items of the manifest's dtype, little-endian."""

    file: str
    tokens: int
    bytes: int
    xxh3_128: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Shards in order: together one stream of tokens, every document followed by the end-of-text token."""

    documents: int
    tokens: int
    text_bytes: int
    """UTF-8 bytes of the documents' text, for bits per byte."""
    shards: tuple[Shard, ...]

    def num_rows(self, seq_len: int) -> int:
        """Rows of `seq_len + 1` tokens that start every `seq_len` tokens: 1,001 tokens hold 10 rows of 100."""
        return max(0, (self.tokens - 1) // seq_len)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFacts:
    file: str
    vocab_size: int
    eos_token_id: int
    xxh3_128: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    dtype: str
    """`uint16` or `uint32`."""
    tokenizer: TokenizerFacts
    train: Split
    validation: Split
    source: dict[str, Any]
    """Where the text came from: patterns, number of files, skipped files with reasons, fingerprint."""

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: str, where: str) -> "Manifest":
        """Parse; `where` names the file in errors. Raises DataError."""
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT:
                raise DataError(f"{where} has format {raw['format']!r}, this version reads {FORMAT!r}")
            manifest = Manifest(
                dtype=raw["dtype"],
                tokenizer=TokenizerFacts(**raw["tokenizer"]),
                train=_split(raw["train"]),
                validation=_split(raw["validation"]),
                source=dict(raw["source"]),
            )
            _check_values(manifest)
            return manifest
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{where} is not a manifest that phalanx wrote ({error!r}); "
                "prepare the data again: phalanx prepare data.source=... data.path=..."
            ) from error


def _check_values(manifest: Manifest) -> None:
    """Raises ValueError: what is read here is computed with, and names files."""
    if manifest.dtype not in DTYPES:
        raise ValueError(f"dtype is {manifest.dtype!r}, not one of {', '.join(DTYPES)}")
    tokenizer, splits = manifest.tokenizer, (manifest.train, manifest.validation)
    shards = [shard for split in splits for shard in split.shards]
    counts: list[object] = [tokenizer.vocab_size, tokenizer.eos_token_id]
    counts += [count for split in splits for count in (split.documents, split.tokens, split.text_bytes)]
    counts += [count for shard in shards for count in (shard.tokens, shard.bytes)]
    texts: list[object] = [tokenizer.file, tokenizer.xxh3_128]
    texts += [text for shard in shards for text in (shard.file, shard.xxh3_128)]
    for count in counts:
        if type(count) is not int or count < 0:
            raise ValueError(f"{count!r} stands where a count belongs")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{text!r} stands where a name or a checksum belongs")


def _split(raw: dict[str, Any]) -> Split:
    return Split(
        documents=raw["documents"],
        tokens=raw["tokens"],
        text_bytes=raw["text_bytes"],
        shards=tuple(Shard(**shard) for shard in raw["shards"]),
    )
