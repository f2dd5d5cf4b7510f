"""Prepared data of which one window is noise, for ranks and for whole runs: the loss really spikes there."""

import json
import shutil
from pathlib import Path

import numpy as np
import xxhash

from orchestrator.data.order import GlobalOrder
from orchestrator.data.shards import read_manifest

LEAST_TOKEN = 3


def copy_with_noise(source: Path, target: Path, *, window: int, batch: int, seq_len: int, seed: int) -> None:
    """The prepared data of `source` with random tokens in the rows of `window`, as a run with `seed` reads them."""
    shutil.copytree(source, target)
    manifest = read_manifest(str(target))
    (shard,) = manifest.train.shards
    tokens = np.fromfile(target / shard.file, manifest.dtype)
    rows = GlobalOrder(manifest.train.num_rows(seq_len), seed).rows_of_window(window, batch)
    chosen = np.random.default_rng(7)
    for row in rows:
        part = tokens[row * seq_len : (row + 1) * seq_len]
        part[:] = chosen.integers(LEAST_TOKEN, manifest.tokenizer.vocab_size, part.size)
    tokens.tofile(target / shard.file)
    path = target / "manifest.json"
    record = json.loads(path.read_text())
    record["train"]["shards"][0]["xxh3_128"] = xxhash.xxh3_128_hexdigest(tokens.tobytes())
    path.write_text(json.dumps(record))
