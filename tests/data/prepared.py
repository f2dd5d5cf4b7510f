"""Builders for tests: text on disk, `prepare` in this process, and an independent way to read its output."""

import json
from pathlib import Path

import numpy as np
import xxhash
from tokenizers import Tokenizer

from orchestrator.config import DataConfig
from orchestrator.data.manifest import Manifest, Shard, Split, TokenizerFacts
from orchestrator.data.prepare import Prepared, map_in_process, prepare_data

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "ships",
    "sail",
]


def sentence(seed: int, num_words: int = 40) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, num_words))


def documents(count: int, num_words: int = 40) -> list[str]:
    return [sentence(seed, num_words) for seed in range(count)]


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({field: text, "other": 1}) + "\n" for text in texts))
    return path


def run_prepare(*, map_tasks=map_in_process, lines=None, progress=None, **settings) -> Prepared:
    """`prepare` with a small vocabulary; news goes to the list `lines`, every state to `progress`."""
    config = DataConfig(**{"vocab_size": 300, **settings})
    return prepare_data(
        config,
        None,
        map_tasks=map_tasks,
        say=(lines if lines is not None else []).append,
        on_progress=(progress if progress is not None else []).append,
    )


def stream_of(folder: Path, split: str) -> np.ndarray:
    """All tokens of a split, by reading the files as the format says: no code of ours."""
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = [np.fromfile(folder / shard["file"], manifest["dtype"]) for shard in manifest[split]["shards"]]
    return np.concatenate([np.empty(0, manifest["dtype"]), *shards])


def texts_of(folder: Path, split: str) -> list[str]:
    """The documents of a split, decoded."""
    manifest = json.loads((folder / "manifest.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / manifest["tokenizer"]["file"]))
    tokens = stream_of(folder, split)
    ends = np.flatnonzero(tokens == manifest["tokenizer"]["eos_token_id"])
    starts = [0, *(ends[:-1] + 1)]
    return [
        tokenizer.decode(tokens[start:end].tolist(), skip_special_tokens=False)
        for start, end in zip(starts, ends, strict=True)
    ]


def write_shards(folder: Path, lengths: list[int], dtype: str = "uint16") -> Manifest:
    """Random tokens in train shards of the given lengths, with a manifest that is right about them."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for index, length in enumerate(lengths):
        tokens = np.random.default_rng(index).integers(0, np.iinfo(dtype).max, length, dtype=dtype)
        path = folder / f"train_{index:05d}.bin"
        tokens.tofile(path)
        checksum = xxhash.xxh3_128_hexdigest(path.read_bytes())
        shards.append(Shard(file=path.name, tokens=length, bytes=tokens.nbytes, xxh3_128=checksum))
    (folder / "tokenizer.json").write_text("{}")
    manifest = Manifest(
        dtype=dtype,
        tokenizer=TokenizerFacts(
            file="tokenizer.json", vocab_size=2**16, eos_token_id=0, xxh3_128=xxhash.xxh3_128_hexdigest(b"{}")
        ),
        train=Split(documents=1, tokens=sum(lengths), text_bytes=1, shards=tuple(shards)),
        validation=Split(documents=0, tokens=0, text_bytes=0, shards=()),
        source={},
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return manifest
