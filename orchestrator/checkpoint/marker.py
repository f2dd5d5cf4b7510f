"""The marker COMMITTED.json: what it says, how it is written and read. Plan half: no disk access."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from orchestrator.checkpoint.layout import (
    BYTES_PER_ELEMENT,
    KINDS,
    MarkerFile,
    PayloadFile,
    Piece,
    TensorEntry,
    checked_counts,
    checked_shape,
    file_dict,
    kind_order,
    small_entries,
)
from orchestrator.errors import CheckpointError

FORMAT = "phalanx-checkpoint-1"
_SEPARATOR = re.compile(r"[/\\\0]")
_CHECKSUM_LINE = re.compile(r',\n"sha256": "([0-9a-f]{64})"\n}\n\Z')


@dataclass(frozen=True, slots=True)
class DataState:
    """Where the data stands: the next step to read, and the global batches that are never trained on."""

    step: int
    skipped_windows: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """The whole COMMITTED.json. Its last line is a SHA-256 over all bytes before it."""

    run_id: str
    fingerprint: str
    identity: dict[str, Any]
    """Dotted key -> value of what must match on resume."""
    attempt: int
    step: int
    world_size: int
    zero_stage: int
    precision: str
    time: float
    """Unix seconds of the commit."""
    data: DataState
    model: dict[str, Any]
    """The resolved ModelConfig."""
    seq_len: int
    data_path: str | None
    tokenizer_xxh3_128: str | None
    files: tuple[MarkerFile, ...]
    tensors: Mapping[str, TensorEntry]
    loss: float | None = None
    """Training loss at `step`; one that is not finite is written as null."""
    branch: int = 0
    """How many rollbacks led here."""
    recent_losses: tuple[float, ...] = ()
    """Of the last steps, oldest first, where spikes are looked for."""
    schedule: dict[str, Any] = field(default_factory=dict)
    """The learning-rate schedule: length, peak, and what else the engine wants back."""
    loss_scaler: dict[str, Any] | None = None
    optimizer: dict[str, Any] = field(default_factory=dict)
    """Counters and hyper-parameters by group; the moments are in `tensors`."""
    wandb_run_id: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    encryption: dict[str, Any] | None = None
    """Of the payloads: cipher, chunk size and the key's check value, never the key; None: they are plain."""

    @property
    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def to_json(self) -> str:
        """One line for each field, the checksum last. Raises CheckpointError where a value is not JSON."""
        position = {file.file: index for index, file in enumerate(self.files)}
        raw = {item.name: getattr(self, item.name) for item in fields(self)}
        raw["loss"] = self.loss if self.loss is not None and math.isfinite(self.loss) else None
        raw["data"] = {"step": self.data.step, "skipped_windows": list(self.data.skipped_windows)}
        raw["files"] = [file_dict(file) for file in self.files]
        try:
            raw["tensors"] = {
                name: {
                    "shape": list(entry.shape),
                    "kinds": {
                        # Files by position: stage 3 at a thousand ranks has millions of pieces.
                        kind: [[position[p.file], p.offset, p.start, p.count] for p in pieces]
                        for kind, pieces in entry.kinds.items()
                    },
                }
                for name, entry in self.tensors.items()
            }
            lines = [f'"format": "{FORMAT}"'] + [
                f"{json.dumps(key)}: {json.dumps(value, sort_keys=True, allow_nan=False)}"
                for key, value in raw.items()
            ]
        except (TypeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the marker of step {self.step} can't be written as JSON ({error!r}): a bug in phalanx"
            ) from error
        body = "{\n" + ",\n".join(lines)
        return f'{body},\n"sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'

    @classmethod
    def from_json(cls, text: str, where: str) -> Self:
        """Parse and check the checksum; `where` names the file in errors. Raises CheckpointError."""
        match = _CHECKSUM_LINE.search(text)
        if match is None:
            raise CheckpointError(f"{where} is damaged: it does not end with its checksum")
        if hashlib.sha256(text[: match.start()].encode()).hexdigest() != match.group(1):
            raise CheckpointError(f"{where} is damaged: its content does not match its checksum")
        try:
            raw = json.loads(text)
            found = raw.pop("format")
            if found != FORMAT:
                raise CheckpointError(f"{where} has format {found!r}, this version reads {FORMAT!r}")
            del raw["sha256"]
            raw["data"] = DataState(raw["data"]["step"], tuple(raw["data"]["skipped_windows"]))
            raw["recent_losses"] = tuple(raw.get("recent_losses", ()))
            raw["files"] = tuple(_marker_file(file) for file in raw["files"])
            names = [file.file for file in raw["files"]]
            raw["tensors"] = _Tensors(raw["tensors"], names, where)
            return cls(**raw)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise CheckpointError(f"{where} is not a marker that phalanx wrote ({error!r})") from error


class _Tensors(Mapping[str, TensorEntry]):
    """A marker's tensors, each decoded when it is asked for: a rank reads few of them, and there may be millions of
    pieces. Asking raises CheckpointError where an entry is not what phalanx writes."""

    def __init__(self, raw: Mapping[str, Any], files: Sequence[str], where: str) -> None:
        self._raw = dict(raw)
        self._files = files
        self._where = where
        self._decoded: dict[str, TensorEntry] = {}

    def __getitem__(self, name: str) -> TensorEntry:
        if name not in self._decoded:
            raw = self._raw[name]
            try:
                self._decoded[name] = _tensor(raw, self._files)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                raise CheckpointError(f"{self._where} is not a marker that phalanx wrote ({error!r})") from error
        return self._decoded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


def gather_payloads(
    payloads: Iterable[PayloadFile],
) -> tuple[tuple[MarkerFile, ...], dict[str, TensorEntry]]:
    """The marker's `files` and `tensors` from what the ranks confirmed. Raises CheckpointError."""
    files: list[MarkerFile] = []
    shapes: dict[str, tuple[int, ...]] = {}
    pieces: dict[str, dict[str, list[Piece]]] = {}
    small_owner: dict[str, str] = {}
    for payload in sorted(payloads, key=lambda payload: payload.file):
        if files and files[-1].file == payload.file:
            raise CheckpointError(f"two ranks confirmed the same file {payload.file}: a bug in phalanx")
        files.append(MarkerFile(payload.file, payload.bytes, payload.xxh3_128, payload.small))
        for key in payload.small:
            if key in small_owner:
                raise CheckpointError(f"{small_owner[key]} and {payload.file} both hold {key!r}: a bug in phalanx")
            small_owner[key] = payload.file
        for name, entry in payload.tensors.items():
            if shapes.setdefault(name, entry.shape) != entry.shape:
                raise CheckpointError(
                    f"{payload.file} gives {name} the shape {list(entry.shape)}, "
                    f"other ranks {list(shapes[name])}: a bug in phalanx"
                )
            for kind, extents in entry.kinds.items():
                pieces.setdefault(name, {}).setdefault(kind, []).extend(extents)
    tensors = {
        name: TensorEntry(
            shapes[name],
            {
                kind: tuple(sorted(found, key=lambda piece: piece.start))
                for kind, found in sorted(pieces.get(name, {}).items(), key=lambda item: kind_order(item[0]))
            },
        )
        for name in sorted(shapes)
    }
    return tuple(files), tensors


def common_key_check(payloads: Iterable[PayloadFile]) -> str | None:
    """Of the key that all payloads are encrypted with, None where they are plain. Raises CheckpointError."""
    found = {payload.key_check: payload.file for payload in payloads}
    if len(found) > 1:
        named = ", ".join(f"{file} with {check or 'none'}" for check, file in found.items())
        raise CheckpointError(f"the ranks encrypted with different keys ({named}); give every node the same key")
    return next(iter(found), None)


def coverage_problems(marker: Marker) -> list[str]:
    """One sentence for each kind of a logical tensor whose pieces don't cover [0, numel) exactly once."""
    bytes_by_file = {file.file: file.bytes for file in marker.files}
    problems: list[str] = []
    if len(bytes_by_file) != len(marker.files):
        problems.append("the marker names a file twice")
    for name, entry in sorted(marker.tensors.items()):
        if "master" not in entry.kinds:
            problems.append(f"{name} has no fp32 master")
        for kind, pieces in entry.kinds.items():
            problem = _cover_problem(entry.numel, pieces, bytes_by_file)
            if kind not in KINDS:
                problem = f"is not a kind that this version knows ({', '.join(KINDS)})"
            if problem:
                problems.append(f"{name} ({kind}): {problem}")
    return problems


def _cover_problem(numel: int, pieces: Iterable[Piece], bytes_by_file: Mapping[str, int]) -> str | None:
    end = 0
    for piece in sorted(pieces, key=lambda piece: (piece.start, piece.count)):
        if piece.file not in bytes_by_file:
            return f"{piece.file} is not among the marker's files"
        if piece.offset + piece.count * BYTES_PER_ELEMENT > bytes_by_file[piece.file]:
            return f"elements from {piece.start} on end beyond {piece.file}"
        if piece.count and piece.start > end:
            return f"elements {end} to {piece.start - 1} are missing"
        if piece.count and piece.start < end:
            return f"elements from {piece.start} on are held twice"
        end = max(end, piece.start + piece.count)
    if end < numel:
        return f"elements {end} to {numel - 1} are missing"
    return f"pieces end at {end}, the tensor has {numel} elements" if end > numel else None


def _marker_file(raw: Mapping[str, Any]) -> MarkerFile:
    name = raw["file"]
    # A marker from elsewhere must not make us read outside its own folder.
    if not isinstance(name, str) or not name or name in {".", ".."} or _SEPARATOR.search(name):
        raise ValueError(f"bad file name {name!r}")
    (num_bytes,) = checked_counts([raw["bytes"]], 1)
    return MarkerFile(name, num_bytes, str(raw["xxh3_128"]), small_entries(raw["small"]))


def _tensor(raw: Mapping[str, Any], files: Sequence[str]) -> TensorEntry:
    kinds: dict[str, tuple[Piece, ...]] = {}
    for kind, rows in raw["kinds"].items():
        pieces = []
        for row in rows:
            file, offset, start, count = checked_counts(row, 4)
            pieces.append(Piece(files[file], offset, start, count))
        kinds[kind] = tuple(pieces)
    ordered = sorted(kinds.items(), key=lambda item: kind_order(item[0]))
    return TensorEntry(checked_shape(raw["shape"]), dict(ordered))
