"""Reads logical tensors of a committed checkpoint by ranges, whatever world size and stage wrote them."""

import functools
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from io import FileIO
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from orchestrator.checkpoint.key import Key, key_to_read
from orchestrator.checkpoint.layout import (
    BYTES_PER_ELEMENT,
    MARKER,
    Piece,
    SmallEntry,
    TensorEntry,
    step_folder,
    step_of,
)
from orchestrator.checkpoint.marker import Marker
from orchestrator.checkpoint.payload import DTYPES
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointError

if TYPE_CHECKING:
    from orchestrator.checkpoint.encryption import SealedFile

_FP32 = np.dtype("<f4")
_START = attrgetter("start")
_MAX_OPEN_FILES = 64
"""Of a checkpoint that thousands of ranks wrote."""


def read_marker(store: Store, step: int) -> Marker:
    """The marker of a committed step. CheckpointError if there is none or it is damaged, else StoreError."""
    path = f"{step_folder(step)}/{MARKER}"
    where = store.where(path)
    if not store.exists(path):
        raise CheckpointError(f"{where} does not exist: step {step} was never committed")
    try:
        text = store.read(path).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is damaged: byte {error.start} is not UTF-8") from error
    marker = Marker.from_json(text, where)
    if marker.step != step:
        raise CheckpointError(f"{where} is the marker of step {marker.step}: the folder was renamed")
    return marker


class CheckpointReader:
    """Range reads over one checkpoint; memory is what is asked for. Checksums are `verify`'s business.

    An encrypted one needs its key at the first read: from `key_file`, else from the environment.
    """

    def __init__(self, store: Store, marker: Marker, key_file: str | None = None) -> None:
        self.store = store
        self.marker = marker
        self._key_file = key_file
        self._key: Key | None = None
        self._stored_bytes = {file.file: file.bytes for file in marker.files}
        self._sealed: dict[str, SealedFile] = {}
        self._newest_sealed: SealedFile | None = None
        self._open: OrderedDict[str, FileIO | None] = OrderedDict()
        self._folder = step_folder(marker.step)
        self._small: dict[str, tuple[str, SmallEntry]] = {
            key: (file.file, entry) for file in marker.files for key, entry in file.small.items()
        }
        self._index: dict[tuple[str, str], _Held] = {}
        """By name and kind; made on first use."""

    @functools.cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical tensor -> its full shape."""
        return {name: entry.shape for name, entry in self.marker.tensors.items()}

    @classmethod
    def open(cls, folder_url: str, key_file: str | None = None) -> "CheckpointReader":
        """The checkpoint in a step folder, `runs/x/checkpoints/step_00001000`. Raises CheckpointError."""
        parent, _, name = folder_url.rstrip("/").rpartition("/")
        step = step_of(name)
        if step is None:
            raise CheckpointError(f"{folder_url} is not a checkpoint folder: its name must be like step_00001000")
        store = Store(parent or ("/" if folder_url.startswith("/") else "."))
        return cls(store, read_marker(store, step), key_file)

    def kinds(self, name: str) -> tuple[str, ...]:
        """What is held of a tensor: `master` and, where it is trained, its moments."""
        return tuple(self._entry(name).kinds)

    def numel(self, name: str) -> int:
        return self._entry(name).numel

    def read(
        self,
        name: str,
        kind: str = "master",
        start: int = 0,
        count: int | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Flat elements [start, start + count) of a tensor: float32[count], into `out` where given.

        `count=None` reads to the tensor's end. Raises CheckpointError for what is not held.
        """
        held = self._index.get((name, kind)) or self._held(name, kind)
        count = held.numel - start if count is None else count
        if start < 0 or count < 0 or start + count > held.numel:
            raise CheckpointError(
                f"elements [{start}, {start + count}) of {name} were asked for, it has {held.numel}"
            )
        target = np.empty(count, _FP32) if out is None else out
        if target.dtype != _FP32 or target.shape != (count,) or not target.flags.c_contiguous:
            raise ValueError(f"out must be float32[{count}], contiguous; got {target.dtype}{list(target.shape)}")
        if count:
            self._fill(name, held.pieces, max(0, bisect_right(held.starts, start) - 1), start, target)
        return target

    def small(self, key: str) -> np.ndarray:
        """A small tensor, whole. Raises CheckpointError where it is not held."""
        if key not in self._small:
            raise CheckpointError(f"{self.where} has no small tensor {key!r}; it has {list(self._small)}")
        file, entry = self._small[key]
        array = np.empty(entry.shape, DTYPES[entry.dtype])
        if array.nbytes:
            out = memoryview(array.reshape(-1).view(np.uint8))
            self.read_range(file, entry.offset, entry.bytes, out)
        return array

    def read_range(self, file: str, offset: int, count: int, out: memoryview) -> None:
        """Plain bytes [offset, offset + count) of one of the marker's files."""
        if self.marker.encryption is None:
            opened = self._kept_open(file)
            if not _read_at_once(opened, offset, out):
                self.store.read_range(f"{self._folder}/{file}", offset, count, out, opened)
            return
        sealed = self._sealed_file(file)
        if self._newest_sealed not in (None, sealed):
            self._newest_sealed.release()
        self._newest_sealed = sealed
        sealed.read_range(offset, count, out)

    def _kept_open(self, file: str) -> FileIO | None:
        if file not in self._open:
            if len(self._open) >= _MAX_OPEN_FILES:
                self._open.popitem(last=False)
            self._open[file] = self.store.open(f"{self._folder}/{file}")
        self._open.move_to_end(file)
        return self._open[file]

    def plain_bytes(self, file: str) -> int:
        """Size of one of the marker's files without its encryption."""
        is_plain = self.marker.encryption is None
        return self._stored_bytes[file] if is_plain else self._sealed_file(file).plain_bytes

    def _sealed_file(self, file: str) -> "SealedFile":
        from orchestrator.checkpoint.encryption import SealedFile

        if self._key is None:
            self._key = key_to_read(self.marker.encryption or {}, self._key_file, self.where)
        if file not in self._sealed:
            path = f"{self._folder}/{file}"
            self._sealed[file] = SealedFile(self.store, path, self._stored_bytes[file], self._key)
        return self._sealed[file]

    @property
    def where(self) -> str:
        return self.store.where(self._folder)

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self.marker.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.where} has no tensor {name!r}") from None

    def _held(self, name: str, kind: str) -> "_Held":
        entry = self._entry(name)
        if kind not in entry.kinds:
            raise CheckpointError(f"{self.where} has no {kind} of {name}; it has {', '.join(entry.kinds)}")
        pieces = sorted((piece for piece in entry.kinds[kind] if piece.count), key=_START)
        held = self._index[name, kind] = _Held(entry.numel, pieces, list(map(_START, pieces)))
        return held

    def _fill(self, name: str, pieces: list[Piece], first: int, start: int, target: np.ndarray) -> None:
        data = memoryview(target).cast("B")
        done = 0
        for piece in pieces[first:]:
            if done == len(target):
                break
            skipped = start + done - piece.start
            count = min(piece.count - skipped, len(target) - done)
            if skipped < 0 or count <= 0:
                break
            self.read_range(
                piece.file,
                piece.offset + skipped * BYTES_PER_ELEMENT,
                count * BYTES_PER_ELEMENT,
                data[done * BYTES_PER_ELEMENT : (done + count) * BYTES_PER_ELEMENT],
            )
            done += count
        if done < len(target):
            raise CheckpointError(f"{self.where} does not hold element {start + done} of {name}")


class _Held(NamedTuple):
    """One kind of a tensor."""

    numel: int
    pieces: list[Piece]
    """By rising start, none of them empty."""
    starts: list[int]


def _read_at_once(file: FileIO | None, offset: int, out: memoryview) -> bool:
    """Most ranges are small and on a disk; whatever else there is to do, or to say, is the store's business."""
    if file is None:
        return False
    try:
        return os.preadv(file.fileno(), [out], offset) == len(out)
    except OSError:
        return False
