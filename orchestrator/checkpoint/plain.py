"""A checkpoint as a folder that any tool reads: safetensors of whole fp32 tensors by logical name, and its facts."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.checkpoint.layout import BYTES_PER_ELEMENT
from orchestrator.checkpoint.payload import HEADER_LENGTH_BYTES, parse_header
from orchestrator.checkpoint.reader import CheckpointReader
from orchestrator.checkpoint.store import CHUNK_BYTES
from orchestrator.errors import CheckpointError, ConfigError

FORMAT = "phalanx-plain-1"
FACTS = "checkpoint.json"
MASTERS = "model.safetensors"
MOMENTS = "optimizer.safetensors"
"""Keys are KIND/NAME: `exp_avg/embedding.weight`."""


def export_plain(reader: CheckpointReader, folder: Path, *, has_moments: bool) -> list[str]:
    """Write the checkpoint into `folder`, which must not exist or be empty; returns the names of its files.

    Memory is one chunk. The folder appears whole or not at all. Raises ConfigError for a folder with files in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not an empty folder; name a new one")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        names = sorted(reader.shapes)
        _write(partial / MASTERS, {name: (name, "master") for name in names}, reader)
        if has_moments:
            keys = {
                f"{kind}/{name}": (name, kind) for name in names for kind in reader.kinds(name) if kind != "master"
            }
            _write(partial / MOMENTS, keys, reader)
        (partial / FACTS).write_text(json.dumps(_facts(reader), indent=2, sort_keys=True) + "\n")
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(file.name for file in folder.iterdir())


class PlainFolder:
    """Reads what `export_plain` wrote."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError where it is not such a folder."""
        self.path = folder
        try:
            facts = json.loads((folder / FACTS).read_text())
            if facts["format"] != FORMAT:
                raise CheckpointError(
                    f"{folder / FACTS} has format {facts['format']!r}, this version reads {FORMAT!r}"
                )
            self.step: int = facts["step"]
            self.model: dict[str, Any] = facts["model"]
            self._headers = {file: _header(folder / file) for file in (MASTERS, MOMENTS) if (folder / file).is_file()}
            self.shapes: Mapping[str, tuple[int, ...]] = {n: entry[1] for n, entry in self._headers[MASTERS].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder} is not a folder that phalanx ckpt export wrote whole ({error!r})"
            ) from error

    def kinds(self, name: str) -> list[str]:
        moments = self._headers.get(MOMENTS, {})
        return ["master", *(key.split("/", 1)[0] for key in moments if key.split("/", 1)[1] == name)]

    def read(self, name: str, kind: str = "master") -> np.ndarray:
        """A whole tensor: float32 [numel]."""
        file, key = (MASTERS, name) if kind == "master" else (MOMENTS, f"{kind}/{name}")
        dtype, _, offset, num_bytes = self._headers[file][key]
        if dtype != "F32":
            raise CheckpointError(f"{self.path / file} holds {key} as {dtype}, F32 is needed")
        array = np.fromfile(self.path / file, "<f4", num_bytes // BYTES_PER_ELEMENT, offset=offset)
        if array.nbytes != num_bytes:
            raise CheckpointError(f"{self.path / file} is damaged: it ends within {key}")
        return array


def _facts(reader: CheckpointReader) -> dict[str, Any]:
    marker = reader.marker
    return {
        "format": FORMAT,
        "run_id": marker.run_id,
        "fingerprint": marker.fingerprint,
        "identity": marker.identity,
        "step": marker.step,
        "model": marker.model,
        "seq_len": marker.seq_len,
        "loss": marker.loss,
        "schedule": marker.schedule,
        "optimizer": marker.optimizer,
        "tokenizer_xxh3_128": marker.tokenizer_xxh3_128,
        "versions": marker.versions,
    }


def _write(path: Path, keys: Mapping[str, tuple[str, str]], reader: CheckpointReader) -> None:
    items: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for key, (name, _) in keys.items():
        end = begin + reader.numel(name) * BYTES_PER_ELEMENT
        items[key] = {"dtype": "F32", "shape": list(reader.shapes[name]), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(items, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_LENGTH_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(HEADER_LENGTH_BYTES, "little") + text)
        for name, kind in keys.values():
            for chunk in _chunks(reader, name, kind):
                file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _chunks(reader: CheckpointReader, name: str, kind: str) -> Iterator[memoryview]:
    buffer = np.empty(CHUNK_BYTES // BYTES_PER_ELEMENT, "<f4")
    numel = reader.numel(name)
    for start in range(0, numel, len(buffer)):
        count = min(len(buffer), numel - start)
        yield memoryview(reader.read(name, kind, start, count, out=buffer[:count])).cast("B")


def _header(path: Path) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
        if length > path.stat().st_size - HEADER_LENGTH_BYTES:
            raise ValueError(f"{path} claims a header of {length:,} bytes")
        return parse_header(file.read(length), str(path))
