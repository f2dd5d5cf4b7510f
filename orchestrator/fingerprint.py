"""What makes a run this run, and 16 hexadecimal digits of it. Plan half.

Not part of it: world size, ZeRO stage, micro-batch, precision, cluster, checkpoint, snapshot, fault,
tracking, evaluation and train.steps. Those may change from one start to the next. Of `checkpoint` only
`init_from` counts: other initial weights are another run.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from enum import Enum
from typing import Any

from model.config import ModelConfig
from orchestrator.config import RunConfig
from orchestrator.data.manifest import Manifest, Split


def identity(config: RunConfig, model: ModelConfig, manifest: Manifest | None) -> dict[str, Any]:
    """Dotted key -> plain JSON value. `model` is the resolved one: every null filled in.

    `optim.schedule_steps` stays null where the person left it null: a longer `train.steps` is the same run.
    """
    found: dict[str, Any] = {f"model.{key}": value for key, value in asdict(model).items() if key != "name"}
    found |= {
        "data.train": None if manifest is None else _split_digest(manifest.train, manifest.dtype),
        "data.tokenizer": None if manifest is None else manifest.tokenizer.xxh3_128,
        "data.isolate_documents": config.data.isolate_documents,
        "run.seed": config.run.seed,
        "train.global_batch_size": config.train.global_batch_size,
        "train.seq_len": config.train.seq_len or model.max_seq_len,
    }
    if config.checkpoint.init_from is not None:
        found["checkpoint.init_from"] = config.checkpoint.init_from
    found |= {f"optim.{key}": value for key, value in asdict(config.optim).items()}
    return {key: _plain(value) for key, value in found.items()}


def fingerprint(found: Mapping[str, Any]) -> str:
    """16 hexadecimal digits over canonical JSON: the order of the keys does not matter."""
    canonical = json.dumps(found, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def identity_differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *, run_id: str, ignore: Iterable[str] = ()
) -> list[str]:
    """One sentence with both values for each key in which a resume differs from the first start."""
    way_out = "start another run (run.id=...) or set it back"
    return [
        f"{key} was {_shown(old.get(key))} when run {run_id} started, now {_shown(new.get(key))}; {way_out}"
        for key in sorted({*old, *new} - {*ignore})
        if old.get(key) != new.get(key)
    ]


def _split_digest(split: Split, dtype: str) -> str:
    """Over the tokens only: renamed shard files are the same data."""
    shards = [[shard.tokens, shard.bytes, shard.xxh3_128] for shard in split.shards]
    return hashlib.sha256(json.dumps([dtype, shards]).encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
