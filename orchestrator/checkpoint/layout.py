"""What a checkpoint is: names, extents, the marker COMMITTED.json. Plan half: no disk access.

The unit is the logical tensor (parameter name, full shape) with its fp32 master and optimizer moments. Every
rank's payload holds flat extents of them; the marker maps each tensor to (file, byte offset, elements):
any world size and ZeRO stage reads just the ranges it needs.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from orchestrator.errors import CheckpointError

FORMAT = "phalanx-checkpoint-1"
MARKER = "COMMITTED.json"
REJECTED = "REJECTED.json"
KINDS = ("master", "exp_avg", "exp_avg_sq", "momentum")
"""fp32 master, Adam's first and second moment, SGD's momentum; a digest takes them in this order."""
BYTES_PER_ELEMENT = 4
"""Masters and moments are always fp32, little-endian."""

_STEP_FOLDER = re.compile(r"step_(\d{8,})")
_PAYLOAD_ATTEMPT = re.compile(r"rank_\d{5,}\.attempt_(\d{3,})\.safetensors")
_CHECKSUM_LINE = re.compile(r',\n"sha256": "([0-9a-f]{64})"\n}\n\Z')


def step_folder(step: int) -> str:
    """`step_00001000`."""
    return f"step_{step:08d}"


def step_of(folder: str) -> int | None:
    """The step of a folder's name, None where it is not the name of a checkpoint folder."""
    match = _STEP_FOLDER.fullmatch(folder)
    step = int(match.group(1)) if match else None
    return step if step is not None and step_folder(step) == folder else None


def payload_name(rank: int, attempt: int) -> str:
    """`rank_00000.attempt_001.safetensors`: two attempts never write the same file."""
    return f"rank_{rank:05d}.attempt_{attempt:03d}.safetensors"


def attempt_of(file: str) -> int | None:
    """The attempt in the name of a payload (finished or temporary), None where there is none."""
    match = _PAYLOAD_ATTEMPT.search(file)
    return int(match.group(1)) if match else None


@dataclass(frozen=True, slots=True)
class Extent:
    """Flat elements [start, start + count) of one kind of a logical tensor with the full `shape`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    count: int

    @property
    def key(self) -> str:
        """Its name in the safetensors header, `master/wte.weight@4096`."""
        return f"{self.kind}/{self.name}@{self.start}"


@dataclass(frozen=True, slots=True)
class Piece:
    """Flat elements [start, start + count) of a tensor: fp32 from byte `offset` of `file` on."""

    file: str
    offset: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a logical tensor lies: for each kind its pieces, by rising start."""

    shape: tuple[int, ...]
    kinds: dict[str, tuple[Piece, ...]]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SmallEntry:
    """A small tensor (RNG state, model buffer, ...) whole in one file; `dtype` in safetensors' names."""

    offset: int
    bytes: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PayloadFile:
    """What one rank wrote, as it confirms it to whoever commits. Plain values: picklable, JSON at heart."""

    file: str
    bytes: int
    xxh3_128: str
    """Over the whole file, header included."""
    tensors: dict[str, TensorEntry]
    small: dict[str, SmallEntry]
    key_check: str | None = None
    """Of the key it is encrypted with; offsets are those of the plain text, size and checksum of what is stored."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON; pieces as [offset, start, count]."""
        tensors = {
            name: {
                "shape": list(entry.shape),
                "kinds": {
                    kind: [[p.offset, p.start, p.count] for p in pieces] for kind, pieces in entry.kinds.items()
                },
            }
            for name, entry in self.tensors.items()
        }
        return {**_file_dict(self), "tensors": tensors, "key_check": self.key_check}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        file = raw["file"]
        tensors = {
            name: TensorEntry(
                _shape(entry["shape"]),
                {
                    kind: tuple(Piece(file, offset, start, count) for offset, start, count in pieces)
                    for kind, pieces in entry["kinds"].items()
                },
            )
            for name, entry in raw["tensors"].items()
        }
        return cls(file, raw["bytes"], raw["xxh3_128"], tensors, _small(raw["small"]), raw.get("key_check"))


@dataclass(frozen=True, slots=True)
class MarkerFile:
    """One payload as the marker names it."""

    file: str
    bytes: int
    xxh3_128: str
    small: dict[str, SmallEntry]


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
    tensors: dict[str, TensorEntry]
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
        raw["files"] = [_file_dict(file) for file in self.files]
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
            raw["tensors"] = {name: _tensor(entry, names) for name, entry in raw["tensors"].items()}
            return cls(**raw)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise CheckpointError(f"{where} is not a marker that phalanx wrote ({error!r})") from error


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
                for kind, found in sorted(pieces.get(name, {}).items(), key=lambda item: _kind_order(item[0]))
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


def _kind_order(kind: str) -> tuple[int, str]:
    return (KINDS.index(kind) if kind in KINDS else len(KINDS), kind)


def _file_dict(file: PayloadFile | MarkerFile) -> dict[str, Any]:
    small = {
        key: {"offset": item.offset, "bytes": item.bytes, "dtype": item.dtype, "shape": list(item.shape)}
        for key, item in file.small.items()
    }
    return {"file": file.file, "bytes": file.bytes, "xxh3_128": file.xxh3_128, "small": small}


def _marker_file(raw: Mapping[str, Any]) -> MarkerFile:
    name = raw["file"]
    # A marker from elsewhere must not make us read outside its own folder.
    if not isinstance(name, str) or not name or name in {".", ".."} or re.search(r"[/\\\0]", name):
        raise ValueError(f"bad file name {name!r}")
    (num_bytes,) = _counts([raw["bytes"]], 1)
    return MarkerFile(name, num_bytes, str(raw["xxh3_128"]), _small(raw["small"]))


def _tensor(raw: Mapping[str, Any], files: Sequence[str]) -> TensorEntry:
    kinds: dict[str, tuple[Piece, ...]] = {}
    for kind, rows in raw["kinds"].items():
        pieces = []
        for row in rows:
            file, offset, start, count = _counts(row, 4)
            pieces.append(Piece(files[file], offset, start, count))
        kinds[kind] = tuple(pieces)
    ordered = sorted(kinds.items(), key=lambda item: _kind_order(item[0]))
    return TensorEntry(_shape(raw["shape"]), dict(ordered))


def _small(raw: Mapping[str, Any]) -> dict[str, SmallEntry]:
    entries: dict[str, SmallEntry] = {}
    for key, item in raw.items():
        offset, num_bytes = _counts([item["offset"], item["bytes"]], 2)
        entries[key] = SmallEntry(offset, num_bytes, str(item["dtype"]), _shape(item["shape"]))
    return entries


def _shape(raw: Sequence[Any]) -> tuple[int, ...]:
    return tuple(_counts(raw, len(raw)))


def _counts(raw: Sequence[Any], length: int) -> list[int]:
    if len(raw) != length or any(type(number) is not int or number < 0 for number in raw):
        raise ValueError(f"expected {length} whole numbers of 0 or more, found {raw!r}")
    return list(raw)
