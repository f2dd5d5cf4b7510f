"""What a checkpoint is: names, extents, the marker COMMITTED.json. Plan half: no disk access.

The unit is the logical tensor (parameter name, full shape) with its fp32 master and optimizer moments. Every
rank's payload holds flat extents of them; the marker maps each tensor to (file, byte offset, elements):
any world size and ZeRO stage reads just the ranges it needs.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

MARKER = "COMMITTED.json"
REJECTED = "REJECTED.json"
KINDS = ("master", "exp_avg", "exp_avg_sq", "momentum")
"""fp32 master, Adam's first and second moment, SGD's momentum; a digest takes them in this order."""
BYTES_PER_ELEMENT = 4
"""Masters and moments are always fp32, little-endian."""

_STEP_FOLDER = re.compile(r"step_(\d{8,})")
_PAYLOAD_ATTEMPT = re.compile(r"rank_\d{5,}\.attempt_(\d{3,})\.safetensors")


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


class Piece(NamedTuple):
    """Flat elements [start, start + count) of a tensor: fp32 from byte `offset` of `file` on.

    A named tuple, because stage 3 at a thousand ranks has millions of them: it is made in a third of a frozen
    dataclass's time.
    """

    file: str
    offset: int
    start: int
    count: int  # type: ignore[assignment]  # it hides a method of tuples that nobody needs here


class TensorEntry(NamedTuple):
    """Where a logical tensor lies: for each kind its pieces, by rising start. A named tuple as pieces are."""

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


class PayloadFile(NamedTuple):
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
        return {**file_dict(self), "tensors": tensors, "key_check": self.key_check}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        file, tensors = raw["file"], {}
        for name, entry in raw["tensors"].items():
            kinds = {
                kind: tuple([Piece(file, offset, start, count) for offset, start, count in pieces])
                for kind, pieces in entry["kinds"].items()
            }
            tensors[name] = TensorEntry(checked_shape(entry["shape"]), kinds)
        return cls(file, raw["bytes"], raw["xxh3_128"], tensors, small_entries(raw["small"]), raw.get("key_check"))


class MarkerFile(NamedTuple):
    """One payload as the marker names it."""

    file: str
    bytes: int
    xxh3_128: str
    small: dict[str, SmallEntry]


def kind_order(kind: str) -> tuple[int, str]:
    return (KINDS.index(kind) if kind in KINDS else len(KINDS), kind)


def file_dict(file: PayloadFile | MarkerFile) -> dict[str, Any]:
    small = {
        key: {"offset": item.offset, "bytes": item.bytes, "dtype": item.dtype, "shape": list(item.shape)}
        for key, item in file.small.items()
    }
    return {"file": file.file, "bytes": file.bytes, "xxh3_128": file.xxh3_128, "small": small}


def small_entries(raw: Mapping[str, Any]) -> dict[str, SmallEntry]:
    entries: dict[str, SmallEntry] = {}
    for key, item in raw.items():
        offset, num_bytes = checked_counts([item["offset"], item["bytes"]], 2)
        entries[key] = SmallEntry(offset, num_bytes, str(item["dtype"]), checked_shape(item["shape"]))
    return entries


def checked_shape(raw: Sequence[Any]) -> tuple[int, ...]:
    return tuple(checked_counts(raw, len(raw)))


def checked_counts(raw: Sequence[Any], length: int) -> list[int]:
    found = list(raw)
    is_good = len(found) == length
    for number in found:  # few at a time, but of every rank at every commit: a set would cost more
        is_good = is_good and type(number) is int and number >= 0
    if not is_good:
        raise ValueError(f"expected {length} whole numbers of 0 or more, found {raw!r}")
    return found
