"""One rank's payload: a safetensors file of flat fp32 extents and small tensors, streamed and checksummed."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xxhash

from orchestrator.checkpoint.key import Key
from orchestrator.checkpoint.layout import (
    BYTES_PER_ELEMENT,
    Extent,
    PayloadFile,
    Piece,
    SmallEntry,
    TensorEntry,
    payload_name,
)
from orchestrator.checkpoint.store import CHUNK_BYTES, Store

ArraySource = np.ndarray | Callable[[], np.ndarray]
"""fp32, one-dimensional, contiguous; a callable is asked when its bytes are due (a copy off a device)."""

DTYPES = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1",
    "U16": "<u2", "I16": "<i2", "F16": "<f2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4",
    "U64": "<u8", "I64": "<i8", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
"""safetensors' names of the types that numpy has."""

HEADER_LENGTH_BYTES = 8
SMALL_PREFIX = "small/"


@dataclass(frozen=True, slots=True)
class _Slot:
    """One tensor of the file, in the order of its bytes."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    item_bytes: int
    source: ArraySource
    is_small: bool

    @property
    def num_bytes(self) -> int:
        return self.item_bytes * math.prod(self.shape)


def write_payload(  # noqa: PLR0917 -- where, who, what: in the order of the file's path
    store: Store,
    step_folder: str,
    rank: int,
    attempt: int,
    tensors: Iterable[tuple[Extent, ArraySource]],
    small: Mapping[str, np.ndarray],
    key: Key | None = None,
) -> PayloadFile:
    """Write a rank's file durably under its final name and say what it holds; encrypted where there is a `key`.

    `tensors`: fp32, one-dimensional, contiguous, `extent.count` elements each. Memory: one chunk beyond them.
    Side effects: creates `step_folder` in the store; a failure leaves nothing under the final name. Raises
    StoreError, or ValueError where an array does not fit its extent.
    """
    held = list(tensors)
    slots = _slots(held, small)
    header = _header(slots)
    num_bytes = len(header) + sum(slot.num_bytes for slot in slots)
    digest = xxhash.xxh3_128()
    name = payload_name(rank, attempt)
    path = f"{step_folder}/{name}"
    chunks: Iterable[bytes | memoryview] = _chunks(header, slots)
    if key is not None:
        # Imported only where it is used: plain checkpoints need no cryptography.
        from orchestrator.checkpoint.encryption import sealed, sealed_bytes

        chunks, num_bytes = sealed(chunks, key, path), sealed_bytes(num_bytes)
    store.write_atomic(path, _counted(chunks, digest), num_bytes)
    tensor_entries, small_entries = _describe(name, len(header), [extent for extent, _ in held], slots)
    key_check = None if key is None else key.check
    return PayloadFile(name, num_bytes, digest.hexdigest(), tensor_entries, small_entries, key_check)


def parse_header(data: bytes | memoryview, where: str) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """key -> (dtype, shape, byte offset in the file, bytes) of a header's JSON. Raises ValueError."""
    raw = json.loads(bytes(data))
    if not isinstance(raw, dict):
        raise ValueError(f"the header of {where} is not a JSON object")
    base = HEADER_LENGTH_BYTES + len(data)
    found = {}
    for key, item in raw.items():
        if key != "__metadata__":
            begin, end = item["data_offsets"]
            found[key] = (str(item["dtype"]), tuple(item["shape"]), base + begin, end - begin)
    return found


def _slots(tensors: list[tuple[Extent, ArraySource]], small: Mapping[str, np.ndarray]) -> list[_Slot]:
    """In falling order of item size, so that without padding (safetensors allows none) each is aligned."""
    slots = [
        _Slot(extent.key, "F32", (extent.count,), BYTES_PER_ELEMENT, source, is_small=False)
        for extent, source in tensors
        if extent.count
    ]
    for key, array in small.items():
        dtype = _dtype_name(key, array)
        slots.append(_Slot(SMALL_PREFIX + key, dtype, array.shape, array.itemsize, array, is_small=True))
    if len({slot.key for slot in slots}) != len(slots):
        raise ValueError("two tensors of a payload have the same name, kind and start")
    return sorted(slots, key=lambda slot: -slot.item_bytes)


def _dtype_name(key: str, array: np.ndarray) -> str:
    little = array.dtype.newbyteorder("<")
    for name, code in DTYPES.items():
        if np.dtype(code) == little:
            return name
    raise ValueError(f"small tensor {key!r} has dtype {array.dtype}, a payload holds {', '.join(DTYPES)}")


def _header(slots: list[_Slot]) -> bytes:
    """8 bytes of length, then JSON, padded with spaces so that the data starts at a multiple of 8."""
    items, begin = {}, 0
    for slot in slots:
        end = begin + slot.num_bytes
        items[slot.key] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(items, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(HEADER_LENGTH_BYTES, "little") + text


def _counted(chunks: Iterable[bytes | memoryview], digest: xxhash.xxh3_128) -> Iterator[bytes | memoryview]:
    """The same chunks; the checksum is over what is stored, so that it can be verified without a key."""
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def _chunks(header: bytes, slots: list[_Slot]) -> Iterator[bytes | memoryview]:
    yield header
    for slot in slots:
        data = memoryview(_bytes_of(slot)).cast("B")
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]


def _bytes_of(slot: _Slot) -> np.ndarray:
    array = slot.source() if callable(slot.source) else slot.source
    if slot.is_small:
        # Small by definition, so a copy to contiguous little-endian costs nothing.
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        return little.reshape(-1).view(np.uint8)
    if array.dtype != np.dtype("<f4") or array.shape != slot.shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{slot.key} must be {slot.shape[0]} contiguous fp32 elements, got {array.dtype}{list(array.shape)}"
        )
    return array.view(np.uint8)


def _describe(
    name: str, header_bytes: int, extents: list[Extent], slots: list[_Slot]
) -> tuple[dict[str, TensorEntry], dict[str, SmallEntry]]:
    offsets: dict[str, int] = {}
    small: dict[str, SmallEntry] = {}
    offset = header_bytes
    for slot in slots:
        offsets[slot.key] = offset
        if slot.is_small:
            key = slot.key.removeprefix(SMALL_PREFIX)
            small[key] = SmallEntry(offset, slot.num_bytes, slot.dtype, slot.shape)
        offset += slot.num_bytes
    shapes: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, dict[str, list[Piece]]] = {}
    for extent in sorted(extents, key=lambda extent: extent.start):
        if shapes.setdefault(extent.name, extent.shape) != extent.shape:
            raise ValueError(f"{extent.name} was given with shapes {shapes[extent.name]} and {extent.shape}")
        pieces = kinds.setdefault(extent.name, {}).setdefault(extent.kind, [])
        # An extent of no elements has no bytes, but its tensor exists (a parameter of no elements).
        if extent.count:
            pieces.append(Piece(name, offsets[extent.key], extent.start, extent.count))
    tensors = {
        tensor: TensorEntry(shape, {kind: tuple(found) for kind, found in kinds[tensor].items()})
        for tensor, shape in shapes.items()
    }
    return tensors, small
