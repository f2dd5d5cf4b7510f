"""Writing and reading checkpoints against dd and plain reads: python -m tests.bench.storage"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from orchestrator.checkpoint.commit import commit
from orchestrator.checkpoint.layout import Extent, step_folder
from orchestrator.checkpoint.marker import gather_payloads
from orchestrator.checkpoint.payload import write_payload
from orchestrator.checkpoint.reader import CheckpointReader
from orchestrator.checkpoint.store import Store
from tests.bench.harness import Bench, Comparison, Figure, Measured, interleave, main
from tests.checkpoint.saving import make_marker

WRITERS = 2
"""Ranks of a node whose payloads are written at a time: as many as an agent's writers."""
KINDS = ("master", "exp_avg", "exp_avg_sq")
TENSORS = 48
RESHAPES = ((4, 3), (8, 2), (2, 8))
STEP = 100

ABOUT = f"""Durable: from arrays in memory to a committed checkpoint (two payloads, written by an agent's writer
threads, every byte checksummed with xxh3-128, fsynced, then the marker, fsynced and renamed, and the folder synced)
against `dd bs=16M conv=fsync` of the same bytes from a file in memory to the same disk. Load: N ranks' files are
read by M ranks, each its own ranges only, into memory that is there already, against reading the same bytes of the
same files one after the other with `readinto`; page cache warm, one thread. {TENSORS} tensors, each with masters and
two moments, each kind cut evenly over the ranks as ZeRO cuts them."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mib", type=int, default=1024, help="size of the state (default: 1024)")


def measure(options: argparse.Namespace) -> Measured:
    state = _State(options.mib * 2**20)
    with tempfile.TemporaryDirectory(prefix="phx-bench-", dir=".") as folder:
        root = Path(folder)
        found = interleave(options.pairs, dd=lambda: _dd_s(state, root), ours=lambda: _save_s(state, root, WRITERS))
        written = [
            Comparison(
                name="time to durable",
                unit="s",
                goal="at most 1.05",
                ours=[[s] for s, _ in found["ours"]],
                peer=[[s] for s in found["dd"]],
            )
        ]
        loads = [_load(state, root, saved, loaded, options.pairs) for saved, loaded in RESHAPES]
    stored = Figure(
        name="bytes of the checkpoint's folder / bytes of the state (goal: at most 1.001)",
        unit="x",
        samples=[num_bytes / state.num_bytes for _, num_bytes in found["ours"]],
    )
    settings = {"pairs": options.pairs, "state_mib": options.mib}
    return Measured(settings=settings, comparisons=[*written, *loads], figures=[stored])


class _State:
    """Random tensors: nothing to compress."""

    def __init__(self, num_bytes: int) -> None:
        numel = num_bytes // (4 * len(KINDS) * TENSORS)
        rng = np.random.default_rng(0)
        self.tensors = {
            f"layers.{i}.weight": {kind: rng.standard_normal(numel, dtype=np.float32) for kind in KINDS}
            for i in range(TENSORS)
        }
        self.num_bytes = numel * 4 * len(KINDS) * TENSORS

    def share(self, rank: int, world_size: int) -> Iterator[tuple[Extent, np.ndarray]]:
        """What one of `world_size` ranks holds: an even part of each tensor and kind."""
        for name, kinds in self.tensors.items():
            for kind, values in kinds.items():
                start, stop = (values.size * part // world_size for part in (rank, rank + 1))
                yield Extent(name, kind, values.shape, start, stop - start), values[start:stop]


def _save_s(state: _State, root: Path, world_size: int, *, is_kept: bool = False) -> tuple[float, int]:
    """(seconds, bytes in the folder). What an agent does with sealed slots, and the controller with its answer."""
    _settle()
    store = Store(str(root / f"from_{world_size}"))
    started = time.perf_counter()
    with ThreadPoolExecutor(WRITERS) as writers:
        payloads = list(
            writers.map(
                lambda rank: write_payload(store, step_folder(STEP), rank, 1, state.share(rank, world_size), {}),
                range(world_size),
            )
        )
    files, tensors = gather_payloads(payloads)
    commit(store, make_marker(STEP, world_size=world_size, files=files, tensors=tensors))
    seconds = time.perf_counter() - started
    folder = root / f"from_{world_size}"
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if not is_kept:
        shutil.rmtree(folder)
    return seconds, num_bytes


def _dd_s(state: _State, root: Path) -> float:
    target = root / "dd"
    descriptor = os.memfd_create("phalanx-bench")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as memory:
            for _, values in state.share(0, 1):
                memory.write(values.data)
        _settle()
        command = ["dd", f"if=/proc/self/fd/{descriptor}", f"of={target}", "bs=16M", "conv=fsync", "status=none"]
        started = time.perf_counter()
        subprocess.run(command, check=True, pass_fds=[descriptor])
        return time.perf_counter() - started
    finally:
        os.close(descriptor)
        target.unlink(missing_ok=True)


def _settle() -> None:
    """What others have left to write back is not charged to who comes next."""
    os.sync()


def _load(state: _State, root: Path, saved: int, loaded: int, pairs: int) -> Comparison:
    _save_s(state, root, saved, is_kept=True)
    url = str(root / f"from_{saved}" / step_folder(STEP))
    targets = [
        [(extent, np.zeros_like(values)) for extent, values in state.share(rank, loaded)] for rank in range(loaded)
    ]
    _check(state, targets, url)
    found = interleave(pairs, plain=lambda: _plain_s(targets, url), ours=lambda: _ours_s(targets, url))
    shutil.rmtree(root / f"from_{saved}")
    return Comparison(
        name=f"load, {saved} ranks' files by {loaded} ranks",
        unit="s",
        goal="at most 1.2",
        ours=[[s] for s in found["ours"]],
        peer=[[s] for s in found["plain"]],
    )


Targets = list[list[tuple[Extent, np.ndarray]]]


def _ours_s(targets: Targets, url: str) -> float:
    started = time.perf_counter()
    for of_rank in targets:
        reader = CheckpointReader.open(url)
        for extent, out in of_rank:
            reader.read(extent.name, extent.kind, extent.start, extent.count, out)
    return time.perf_counter() - started


def _plain_s(targets: Targets, url: str) -> float:
    files = sorted(file for file in Path(url).iterdir() if file.suffix == ".safetensors")
    started = time.perf_counter()
    outs = iter([out for of_rank in targets for _, out in of_rank])
    for file in files:
        left = file.stat().st_size
        with file.open("rb", buffering=0) as data:
            while left and (out := next(outs, None)) is not None:
                left -= data.readinto(memoryview(out).cast("B"))
    return time.perf_counter() - started


def _check(state: _State, targets: Targets, url: str) -> None:
    """Reading is only worth timing where it is right."""
    _ours_s(targets, url)
    extent, out = random.Random(1).choice(targets[-1])
    expected = state.tensors[extent.name][extent.kind][extent.start : extent.start + extent.count]
    if not np.array_equal(out, expected):
        raise RuntimeError(f"{extent} was read wrongly")


CAUSE = """Where the last load misses its goal: eight readers in one process each parse the marker and decode its 48
tensors (4.7 ms in all), and each of the 1,152 ranges costs 2.3 us of Python with warm caches (2.6 ms), more after a
copy of a megabyte. Ranks that really load are processes of their own, side by side."""

BENCH = Bench(
    name="storage",
    title="Writing and reading checkpoints against dd and plain reads",
    about=ABOUT,
    pairs=7,
    measure=measure,
    cause=CAUSE,
)

if __name__ == "__main__":
    sys.exit(main(BENCH, add_options))
