"""The prepared data's manifest.json as a value. Plan half: reading the file is the caller's business."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.errors import DataError

FORMAT = "phalanx-tokens-1"
FILE_NAME = "manifest.json"


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
            return Manifest(
                dtype=raw["dtype"],
                tokenizer=TokenizerFacts(**raw["tokenizer"]),
                train=_split(raw["train"]),
                validation=_split(raw["validation"]),
                source=raw["source"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{where} is not a manifest that phalanx wrote ({error!r}); "
                "prepare the data again: phalanx prepare data.source=... data.path=..."
            ) from error


def _split(raw: dict[str, Any]) -> Split:
    return Split(
        documents=raw["documents"],
        tokens=raw["tokens"],
        text_bytes=raw["text_bytes"],
        shards=tuple(Shard(**shard) for shard in raw["shards"]),
    )
