"""Tokens per second of BatchLoader against a bare numpy memmap loop: python -m tests.bench.loader"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import xxhash

from orchestrator.data.batches import BatchLoader
from orchestrator.data.manifest import Manifest
from orchestrator.data.order import GlobalOrder
from orchestrator.data.shards import TokenReader
from orchestrator.spec import BatchShape
from tests.bench.corpus import TRAIN_FILE, write_tokens
from tests.bench.harness import Bench, Comparison, Figure, Measured, interleave, main

NUM_TOKENS = 100_000_000
BATCH_TOKENS = 8 * 2048
BATCHES = 2000
SEQ_LENS = (2048, 1024, 256)
FAR_STEP = 10**6
VIRTUAL_ROWS = 10**12

ABOUT = """Tokens per second of the loader that training uses (`BatchLoader`: order by formula, gather, conversion to
int64, batch digest, handed over by its thread) against a loop over a numpy memmap: `tokens[order[i : i + B]]
.astype(np.int64)` with the whole permutation in memory. The peer with digest also hashes each row, as the contract
of `batch_digest` asks, which is work that the bare loop leaves out. 100 million uint16 tokens, page cache warm,
16,384 tokens a batch, one process. A step of training needs some thousands of tokens per second and rank: this is
about cost, not about speed."""

Side = Callable[[], tuple[float, float]]
"""Reads BATCHES batches; returns (tokens per second, CPU seconds per 10**9 tokens)."""


def measure(options: argparse.Namespace) -> Measured:
    with tempfile.TemporaryDirectory(prefix="phx-bench-") as folder:
        manifest = write_tokens(Path(folder) / "data", NUM_TOKENS, 2**16)
        data = Path(folder) / "data"
        comparisons = [c for seq_len in SEQ_LENS for c in _compare(data, manifest, seq_len, options.pairs)]
        figures = _figures(data, manifest, options.pairs)
    settings = {"pairs": options.pairs, "batches_per_run": BATCHES, "prefetch": 2}
    return Measured(settings=settings, comparisons=comparisons, figures=figures)


def _compare(data: Path, manifest: Manifest, seq_len: int, pairs: int) -> list[Comparison]:
    sides: dict[str, Side] = {
        "ours": lambda: _timed(_ours(data, manifest, seq_len)),
        "memmap": lambda: _timed(_memmap(data, seq_len)),
        "memmap with digest": lambda: _timed(_memmap_with_digest(data, seq_len)),
    }
    for side in sides.values():
        side()  # page cache, allocator
    found = interleave(pairs, **sides)
    shape = f"{BATCH_TOKENS // seq_len} x {seq_len}"
    comparisons = []
    for peer in ("memmap", "memmap with digest"):
        for place, what, unit, goal in (
            (0, "tokens/s", "M tokens/s", "0.8 and more" if peer == "memmap" else "1.0"),
            (1, "CPU", "s per G tokens", "low"),
        ):
            scale = 1e-6 if place == 0 else 1.0
            ours, others = ([[run[place] * scale] for run in found[name]] for name in ("ours", peer))
            name = f"{what}, {shape}, peer: {peer}"
            comparisons.append(Comparison(name=name, unit=unit, goal=goal, ours=ours, peer=others))
    return comparisons


def _timed(batches: Iterator[object]) -> tuple[float, float]:
    next(batches)  # the thread has started
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in itertools.islice(batches, BATCHES):
        pass
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    tokens = BATCHES * BATCH_TOKENS
    return tokens / wall_s, cpu_s / tokens * 1e9


def _loader(data: Path, manifest: Manifest, seq_len: int, start_step: int = 0) -> BatchLoader:
    reader = TokenReader(str(data), manifest, "train", seq_len)
    rows = BATCH_TOKENS // seq_len
    shape = BatchShape(global_batch_size=rows, micro_batch_size=rows, world_size=1, seq_len=seq_len)
    return BatchLoader(reader, GlobalOrder(num_rows=reader.num_rows, seed=1), shape, 0, start_step=start_step)


def _ours(data: Path, manifest: Manifest, seq_len: int) -> Iterator[object]:
    with _loader(data, manifest, seq_len) as loader:
        while True:
            yield loader.next()


def _row_ids(num_rows: int, batch: int) -> Iterator[np.ndarray]:
    order = np.random.default_rng(1).permutation(num_rows)
    for i in itertools.cycle(range(0, num_rows - batch, batch)):
        yield order[i : i + batch]


def _memmap(data: Path, seq_len: int) -> Iterator[object]:
    rows = _rows_of_file(data, seq_len)
    for ids in _row_ids(len(rows), BATCH_TOKENS // seq_len):
        yield rows[ids].astype(np.int64)


def _memmap_with_digest(data: Path, seq_len: int) -> Iterator[object]:
    rows = _rows_of_file(data, seq_len)
    batch = BATCH_TOKENS // seq_len
    for ids in _row_ids(len(rows), batch):
        found = rows[ids]
        words = np.empty((batch, 2 + seq_len), dtype="<u4")
        words[:, :2] = ids.view("<u4").reshape(-1, 2)
        words[:, 2:] = found
        yield found.astype(np.int64), sum(map(xxhash.xxh3_64_intdigest, words)) % 2**64


def _rows_of_file(data: Path, seq_len: int) -> np.ndarray:
    tokens = np.memmap(data / TRAIN_FILE, dtype="<u2", mode="r").view(np.ndarray)
    return tokens[: tokens.size // seq_len * seq_len].reshape(-1, seq_len)


def _figures(data: Path, manifest: Manifest, pairs: int) -> list[Figure]:
    seq_len = 2048
    before = _anonymous_mib()
    batches = _ours(data, manifest, seq_len)
    _timed(batches)
    grown = _anonymous_mib() - before
    order = GlobalOrder(num_rows=VIRTUAL_ROWS, seed=1)
    return [
        Figure(name="first batch", unit="ms", samples=[_first_batch_ms(data, manifest, 0) for _ in range(pairs)]),
        Figure(
            name="first batch at step 10^6",
            unit="ms",
            samples=[_first_batch_ms(data, manifest, FAR_STEP) for _ in range(pairs)],
        ),
        Figure(
            name="rows of one batch of 8 at a random place among 10^12",
            unit="ms",
            samples=[_order_ms(order, window) for window in range(10**9, 10**9 + pairs)],
        ),
        Figure(name="private memory that the loader added", unit="MiB", samples=[grown]),
    ]


def _first_batch_ms(data: Path, manifest: Manifest, step: int) -> float:
    started = time.perf_counter()
    with _loader(data, manifest, 2048, step) as loader:
        loader.next()
        return (time.perf_counter() - started) * 1e3


def _order_ms(order: GlobalOrder, window: int) -> float:
    started = time.perf_counter()
    order.rows_of_window(window, 8)
    return (time.perf_counter() - started) * 1e3


def _anonymous_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return median(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


CAUSE = """What the bare loop leaves out has its price. Each measured alone, in parts of the bare loop's time for
8 x 2048: the digest's hash 11 %, the rows as it hashes them (uint32) 11 %, the order by formula 5 %, sums 3 %;
gather and conversion, into memory that is used again, take a quarter less than the loop's. With rows of 256 tokens
hash and order take 23 % and 12 %, gather and conversion half. The rest is the hand-over between two threads that
share one interpreter. One rank of a real run needs some thousands of tokens per second: 0.01 % of this."""

BENCH = Bench(
    name="loader",
    title="The loader against a bare numpy memmap",
    about=ABOUT,
    pairs=9,
    measure=measure,
    cause=CAUSE,
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
