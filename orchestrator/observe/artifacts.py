"""What a run used and made, as W&B's artifacts: references to where things lie, nothing is uploaded.

Prepared data -> checkpoint -> export: each names what it came from, so that the chain can be walked in W&B (there by
digest of name and place) and, from the same facts in an export's `lineage.json`, without it. Plan half.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.data.manifest import Manifest

_URL_USER = re.compile(r"(?<=://)[^/\s@]+@")
Artifact = dict[str, Any]
"""`name`, `type`, `entry` (what the reference is called in it), `uri`, `aliases`, `metadata`."""


def data_artifact(path: str, manifest: Manifest) -> Artifact:
    """The prepared data: another preparation has another name."""
    metadata = {
        "train_tokens": manifest.train.tokens,
        "validation_tokens": manifest.validation.tokens,
        "vocab_size": manifest.tokenizer.vocab_size,
    }
    stem = path.rstrip("/").rpartition("/")[2] or "data"
    name = f"data-{stem}-{hashlib.sha256(manifest.to_json().encode()).hexdigest()[:8]}"
    return _artifact(name, "dataset", "data", path, aliases=[], metadata=metadata)


def checkpoint_artifact(run_id: str, path: str, step: int, num_bytes: int | None) -> Artifact:
    """A committed checkpoint, the same one whoever refers to it."""
    metadata = {"step": step, "bytes": num_bytes}
    aliases = ["latest", f"step-{step}"]
    return _artifact(f"{run_id}-checkpoint"[:128], "model", "checkpoint", path, aliases=aliases, metadata=metadata)


def committed_artifact(run_id: str, committed: Mapping[str, Any]) -> Artifact:
    """The checkpoint of a `checkpoint_committed` event."""
    return checkpoint_artifact(run_id, str(committed.get("path")), committed["step"], committed.get("bytes"))


def export_artifact(run_id: str, path: str, step: int, *, sources: list[Artifact]) -> Artifact:
    """A Hugging Face folder; its metadata names what it was made from, because W&B keeps no uses offline."""
    made_from = {source["entry"]: {"name": source["name"], "uri": source["uri"]} for source in sources}
    metadata = {"step": step, "run": run_id, "from": made_from}
    name = f"{wandb_safe(run_id)[:121]}-export"
    return _artifact(name, "model", "export", path, aliases=["latest", f"step-{step}"], metadata=metadata)


def wandb_safe(name: str) -> str:
    """A name as W&B takes it: none of / \\ # ? % :, at most 128 characters."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:128]


def without_user(text: str) -> str:
    """Users and passwords in URLs are `***`."""
    return _URL_USER.sub("***@", text)


def _artifact(
    name: str, kind: str, entry: str, path: str, *, aliases: list[str], metadata: dict[str, Any]
) -> Artifact:
    uri = without_user(path) if "://" in path else Path(path).resolve().as_uri()
    return {
        "name": wandb_safe(name),
        "type": kind,
        "entry": entry,
        "uri": uri,
        "aliases": aliases,
        "metadata": metadata,
    }
