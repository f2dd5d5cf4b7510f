"""Reading prepared data: the manifest, its checks, and rows of tokens out of the shards."""

import shlex
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from orchestrator.data import files
from orchestrator.data.manifest import FILE_NAME, Manifest, Shard, Split
from orchestrator.errors import DataError

_MAX_OPEN_SHARDS = 4096
"""Mappings a reader holds at a time: a process may have about 65,000."""
VERIFIED_AT_START_BYTES = 1 << 28
"""Of so many bytes of local shards a new run reads every one before it starts: about a tenth of a second from memory,
half of one from a disk. More would hold up the start; `phalanx prepare --verify` is for them."""
OnRead = Callable[[int], None]
"""Gets the bytes of each piece that was read."""


def split_of(manifest: Manifest, split_name: str) -> Split:
    """The manifest's `train` or `validation` split."""
    return {"train": manifest.train, "validation": manifest.validation}[split_name]


def read_manifest(path_or_url: str) -> Manifest:
    """The manifest of the prepared data in a folder or under a URL. Raises DataError."""
    manifest_url = files.join(path_or_url, FILE_NAME)
    try:
        text = files.read_bytes(manifest_url).decode()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"data.path={path_or_url} has no {FILE_NAME}; "
            f"run: phalanx prepare data.source=... {shlex.quote(f'data.path={path_or_url}')}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{manifest_url} can't be read: {error}") from error
    return Manifest.from_json(text, manifest_url)


def check_shards(path_or_url: str, manifest: Manifest) -> None:
    """Compare sizes and the tokenizer with the manifest. Raises DataError with every problem at once."""
    _raise(path_or_url, [*_size_problems(path_or_url, manifest), *_tokenizer_problems(path_or_url, manifest)])


def verify_shards(path_or_url: str, manifest: Manifest, on_read: OnRead | None = None) -> None:
    """What `check_shards` does, and read every byte of the shards against their checksums.

    Raises DataError with every problem at once.
    """
    problems = [*_size_problems(path_or_url, manifest), *_tokenizer_problems(path_or_url, manifest)]
    _raise(path_or_url, [*problems, *_checksum_problems(path_or_url, manifest, on_read)])


def verify_at_start(path_or_url: str, manifest: Manifest) -> None:
    """Read the shards against their checksums where that takes no noticeable time: local ones of no more than
    VERIFIED_AT_START_BYTES. Call after `check_shards`. Raises DataError."""
    if files.local_path(path_or_url) is not None and shard_bytes(manifest) <= VERIFIED_AT_START_BYTES:
        _raise(path_or_url, _checksum_problems(path_or_url, manifest, None))


def shard_bytes(manifest: Manifest) -> int:
    """Bytes of all shards of both splits."""
    return sum(shard.bytes for shard in _all_shards(manifest))


def _all_shards(manifest: Manifest) -> tuple[Shard, ...]:
    return (*manifest.train.shards, *manifest.validation.shards)


def _tokenizer_problems(path_or_url: str, manifest: Manifest) -> list[str]:
    tokenizer_url = files.join(path_or_url, manifest.tokenizer.file)
    if files.file_bytes(tokenizer_url) is None:
        return [f"{tokenizer_url} is missing"]
    if (found := files.file_xxh3_128(tokenizer_url)) != manifest.tokenizer.xxh3_128:
        return [
            f"{tokenizer_url} is not the tokenizer that the shards were made with: "
            f"its xxh3_128 is {found}, the manifest says {manifest.tokenizer.xxh3_128}"
        ]
    return []


def _checksum_problems(path_or_url: str, manifest: Manifest, on_read: OnRead | None) -> list[str]:
    """Of shards that have their size: the others are named for that."""
    problems = []
    for shard in _all_shards(manifest):
        shard_url = files.join(path_or_url, shard.file)
        if files.file_bytes(shard_url) != shard.bytes:
            continue
        try:
            found = files.file_xxh3_128(shard_url, on_read)
        except OSError as error:
            problems.append(f"{shard_url} can't be read: {error.strerror or error}")
            continue
        if found != shard.xxh3_128:
            problems.append(
                f"{shard_url} is damaged or another file: its xxh3_128 is {found}, the manifest says {shard.xxh3_128}"
            )
    return problems


def _size_problems(path_or_url: str, manifest: Manifest) -> list[str]:
    itemsize = np.dtype(manifest.dtype).itemsize
    problems = []
    for split_name in ("train", "validation"):
        split = split_of(manifest, split_name)
        for shard in split.shards:
            problems += _shard_problems(files.join(path_or_url, shard.file), shard, itemsize)
        if (total := sum(shard.tokens for shard in split.shards)) != split.tokens:
            problems.append(
                f"the manifest's {split_name} shards hold {total:,} tokens, its total says {split.tokens:,}"
            )
    return problems


def _shard_problems(shard_url: str, shard: Shard, itemsize: int) -> list[str]:
    found = files.file_bytes(shard_url)
    if found is None:
        return [f"{shard_url} is missing"]
    problems = []
    if found != shard.bytes:
        problems.append(f"{shard_url} has {found:,} bytes, the manifest says {shard.bytes:,}")
    if shard.tokens * itemsize != shard.bytes:
        problems.append(
            f"{shard_url}: {shard.tokens:,} tokens of {itemsize} bytes do not make "
            f"the manifest's {shard.bytes:,} bytes"
        )
    return problems


def _raise(path_or_url: str, problems: list[str]) -> None:
    if problems:
        cure = "restore the files or prepare the data again in another folder"
        raise DataError(*(f"data.path={path_or_url}: {problem}; {cure}" for problem in problems))


@dataclass(frozen=True, slots=True)
class _OpenShard:
    tokens: NDArray
    """The whole file, mapped."""
    windows: NDArray
    """[tokens - seq_len, seq_len + 1]: the row at every offset; a view that copies nothing."""
    blocks: NDArray
    """[tokens // seq_len, seq_len]: the file cut up; a view that copies nothing."""


class TokenReader:
    """Rows of one split: row r is the seq_len + 1 tokens from token r * seq_len of the shards' joint stream.

    Local shards are mapped into memory when first needed; of remote ones only the rows' bytes are fetched.
    """

    def __init__(self, path_or_url: str, manifest: Manifest, split_name: str, seq_len: int) -> None:
        split = split_of(manifest, split_name)
        self.row_tokens = seq_len + 1
        self.num_rows = split.num_rows(seq_len)
        self.dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._seq_len = seq_len
        self._shards = split.shards
        self._starts = np.cumsum([0, *(shard.tokens for shard in split.shards)], dtype=np.int64)
        self._folder = path_or_url
        self._is_local = files.local_path(path_or_url) is not None
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def rows(self, row_ids: NDArray[np.int64]) -> NDArray:
        """Tokens of rows: [n, seq_len + 1] of the manifest's dtype. Raises IndexError, DataError."""
        rows = np.empty((row_ids.size, self.row_tokens), dtype=self.dtype)
        self.read_into(rows, row_ids)
        return rows

    def read_into(self, rows: NDArray, row_ids: NDArray[np.int64]) -> None:
        """Write the tokens of rows into `rows`, [n, seq_len + 1] of a type that holds them. Raises as `rows` does."""
        if row_ids.size and row_ids.view(np.uint64).max() >= self.num_rows:  # a negative one is huge
            raise IndexError(f"rows {row_ids.min()}..{row_ids.max()} of a split of {self.num_rows} rows")
        first_tokens = row_ids * self._seq_len
        if not self._is_local:
            rows[:] = self._fetch(first_tokens)
        elif len(self._shards) == 1:
            shard = self._open_shard(0)
            rows[:, -1] = shard.tokens.take(first_tokens + self._seq_len)
            rows[:, :-1] = shard.blocks.take(row_ids, axis=0, mode="clip")  # twice as fast as any other gather
        else:
            self._read_from_shards(rows, first_tokens)

    def _read_from_shards(self, rows: NDArray, first_tokens: NDArray[np.int64]) -> None:
        shards = np.searchsorted(self._starts, first_tokens, side="right") - 1
        offsets = first_tokens - self._starts[shards]
        for shard in np.unique(shards).tolist():
            of_shard = np.flatnonzero(shards == shard)
            windows = self._open_shard(shard).windows
            is_whole = offsets[of_shard] < len(windows)
            rows[of_shard[is_whole]] = windows[offsets[of_shard[is_whole]]]
            for i in of_shard[~is_whole].tolist():
                start = self._open_shard(shard).tokens[offsets[i] :]
                rows[i, : start.size] = start
                self._read_rest(rows[i], start.size, shard + 1)

    def _read_rest(self, row: NDArray, filled: int, shard: int) -> None:
        """Fill what is left of a row that runs past the end of a shard from the shards after it."""
        while filled < self.row_tokens:
            tokens = self._open_shard(shard).tokens[: self.row_tokens - filled]
            row[filled : filled + tokens.size] = tokens
            filled += tokens.size
            shard += 1

    def _extents(self, first_token: int) -> list[tuple[int, int, int]]:
        """(shard, first, end) in tokens within each shard that a row touches, in order."""
        extents = []
        end = first_token + self.row_tokens
        shard = int(np.searchsorted(self._starts, first_token, side="right")) - 1
        while first_token < end:
            shard_start, shard_end = int(self._starts[shard]), int(self._starts[shard + 1])
            stop = min(end, shard_end)
            if stop > first_token:
                extents.append((shard, first_token - shard_start, stop - shard_start))
            first_token = stop
            shard += 1
        return extents

    def _open_shard(self, shard: int) -> "_OpenShard":
        if shard not in self._open:
            if len(self._open) >= _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
            self._open[shard] = self._map(self._shards[shard])
        self._open.move_to_end(shard)
        return self._open[shard]

    def _map(self, shard: Shard) -> "_OpenShard":
        path = files.local_path(files.join(self._folder, shard.file))
        try:
            tokens = np.memmap(path, dtype=self.dtype, mode="r", shape=(shard.tokens,)).view(np.ndarray)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} can't be read: {error}") from error
        shape = max(0, tokens.size - self._seq_len), self.row_tokens
        windows = as_strided(tokens, shape, tokens.strides * 2, writeable=False)
        num_blocks = tokens.size // self._seq_len
        return _OpenShard(tokens, windows, tokens[: num_blocks * self._seq_len].reshape(num_blocks, self._seq_len))

    def _fetch(self, first_tokens: NDArray[np.int64]) -> NDArray:
        """Rows of remote shards, all byte ranges asked for at once."""
        extents = [self._extents(int(first_token)) for first_token in first_tokens]
        flat = [extent for of_row in extents for extent in of_row]
        itemsize = self.dtype.itemsize
        filesystem, root = files.open_filesystem(self._folder)
        try:
            parts = filesystem.cat_ranges(
                [files.join(root, self._shards[shard].file) for shard, _, _ in flat],
                [start * itemsize for _, start, _ in flat],
                [stop * itemsize for _, _, stop in flat],
                on_error="raise",
            )
        except OSError as error:
            raise DataError(f"{self._folder} can't be read: {error}") from error
        tokens = np.frombuffer(b"".join(parts), dtype=self.dtype)
        return tokens.reshape(len(extents), self.row_tokens)
