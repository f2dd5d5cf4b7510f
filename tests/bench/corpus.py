"""Prepared data for benchmarks: random tokens in one shard, as `phalanx prepare` would lay them down."""

from pathlib import Path

import numpy as np
import xxhash

from orchestrator.data.manifest import Manifest, Shard, Split, TokenizerFacts

TRAIN_FILE = "train_00000.bin"


def write_tokens(folder: Path, num_tokens: int, vocab_size: int) -> Manifest:
    """uint16 tokens below `vocab_size`, the same at every call, and the manifest that describes them."""
    folder.mkdir(parents=True)
    tokens = np.random.default_rng(0).integers(0, vocab_size, num_tokens, dtype=np.uint16)
    tokens.tofile(folder / TRAIN_FILE)
    (folder / "tokenizer.json").write_text("{}")
    shard = Shard(file=TRAIN_FILE, tokens=num_tokens, bytes=tokens.nbytes, xxh3_128=xxhash.xxh3_128_hexdigest(tokens))
    manifest = Manifest(
        dtype="uint16",
        tokenizer=TokenizerFacts(
            file="tokenizer.json",
            vocab_size=vocab_size,
            eos_token_id=0,
            xxh3_128=xxhash.xxh3_128_hexdigest(b"{}"),
        ),
        train=Split(documents=1, tokens=num_tokens, text_bytes=num_tokens, shards=(shard,)),
        validation=Split(documents=0, tokens=0, text_bytes=0, shards=()),
        source={},
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return manifest
