"""Snapshots and checkpoints against memcpy, dd and the libraries' own: python -m tests.bench.checkpoint"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from orchestrator.data.manifest import Manifest
from orchestrator.observe.metrics import read_rows
from orchestrator.runfolder import RunFolder
from tests.bench.corpus import write_tokens
from tests.bench.harness import Bench, Comparison, Figure, Measured, interleave, main
from tests.bench.save_worker import METHODS
from tests.bench.sides import Run, phalanx, torchrun_command, write_specs

SAVE_WORKER = Path(__file__).with_name("save_worker.py")
TEN_MILLION = (
    "model=quickstart",
    "model.vocab_size=8192",
    "model.hidden_size=256",
    "model.num_layers=17",
    "model.num_heads=4",
    "train.seq_len=256",
)
"""A model of 10 M parameters: 120 MB of masters and moments."""
SMALL_STEP = ("train.global_batch_size=2", "train.micro_batch_size=1", "train.steps=21")
FULL_STEP = ("train.global_batch_size=16", "train.micro_batch_size=4", "train.steps=12")
"""2,048 tokens per rank and step with two ranks."""
SAVE_EVERY = 2
WARMUP_STEPS = 2

ABOUT = f"""Stall: what keeping a copy of the state costs the training thread each time, as a multiple of one memcpy
of the rank's masters and moments into warm memory. Ours is a snapshot after every step of `phalanx train`, in the
agent's memory with its checksum, as `keep_s` and `snapshot_s` of metrics.jsonl book it (the thread's own work, and
what the next update had to wait); the peers save every {SAVE_EVERY} steps to a local disk with the same engine
under torchrun, and what counts is how long the call keeps the thread (of the two asynchronous ones: staging
included, a save that is still under way waited for before the clock starts, staging memory kept from save to save).
The first save, which every peer pays for apart, is listed for itself. ZeRO-2, 10 M parameters, fp32, one thread a
rank; with two ranks both cores are busy, with one a core is free. Interference: time from step to step with a
snapshot after every step against none, two ranks, 2,048 tokens per rank and step; the first {WARMUP_STEPS} steps
are left out."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stall-pairs", type=int, default=3, help="repetitions of the stall part (default: 3)")


def measure(options: argparse.Namespace) -> Measured:
    with tempfile.TemporaryDirectory(prefix="phx-bench-") as folder:
        root = Path(folder)
        manifest = write_tokens(root / "data", 1_000_000, 8192)
        words = [*TEN_MILLION, "parallel=zero2", "tracking=jsonl", "checkpoint.every_steps=0"]
        words.append(f"data.path={root / 'data'}")
        bench = _Sides(words, manifest, root)
        comparisons, figures = [], []
        for workers in (2, 1):
            found = _stalls(bench, workers, options.stall_pairs)
            comparisons += found.comparisons
            figures += found.figures
        comparisons.append(_interference(bench, options.pairs))
    settings = {"pairs": options.pairs, "stall_pairs": options.stall_pairs, "save_every_steps_of_peers": SAVE_EVERY}
    return Measured(settings=settings, comparisons=comparisons, figures=figures)


class _Sides:
    """Runs one side after the other, each in a folder of its own."""

    def __init__(self, words: Sequence[str], manifest: Manifest, root: Path) -> None:
        self._words, self._manifest, self._root = list(words), manifest, root
        self._numbers = itertools.count()

    def ours(self, *more: str) -> tuple[Run, list[float]]:
        """(the run, what each snapshot has cost, s)."""
        run_id = f"run_{next(self._numbers)}"
        run = phalanx([*self._words, *more], self._root, run_id)
        rows = list(read_rows(RunFolder(self._root / run_id).metrics))
        return run, [
            (row.snapshot_s or 0.0) + (row.keep_s or 0.0) for row in rows[1:]
        ]  # the first step follows no snapshot

    def peer(self, method: str, *more: str) -> dict[str, list[float]]:
        """`saves_s` of each save on its slowest rank, `memcpy_s` of the slowest rank."""
        words = [*self._words, *more]
        folder, num_ranks = write_specs(words, self._manifest, self._root, f"peer_{next(self._numbers)}")
        arguments = [str(SAVE_WORKER), method, str(folder / "specs.json"), str(folder), str(SAVE_EVERY)]
        done = subprocess.run([*torchrun_command(num_ranks), *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{method} ended with {done.returncode}: {done.stderr[-3000:]}")
        said = [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(num_ranks)]
        saves_s = [max(each) for each in zip(*(one["saves_s"] for one in said), strict=True)]
        return {"saves_s": saves_s, "memcpy_s": [max(one["memcpy_s"] for one in said)]}


def _stalls(bench: _Sides, workers: int, pairs: int) -> Measured:
    more = [*SMALL_STEP, f"cluster.num_workers={workers}"]
    found = interleave(
        pairs,
        ours=lambda: bench.ours(*more)[1],
        **{name: (lambda name=name: bench.peer(name, *more)) for name in METHODS},
    )
    memcpy_s = [median([peer[pair]["memcpy_s"][0] for peer in _peers(found)]) for pair in range(pairs)]
    place = "both cores busy" if workers == 2 else "one core free"
    saves = {"ours": found["ours"], **{name: [run["saves_s"] for run in found[name]] for name in METHODS}}
    comparisons = [
        Comparison(
            name=f"stall of {name} / memcpy, {place}",
            unit="ms",
            goal="0.02 and less" if name == "ours" else "-",
            ours=[[s * 1e3 for s in run[1:]] for run in runs],
            peer=[[s * 1e3] for s in memcpy_s],
        )
        for name, runs in saves.items()
    ]
    firsts = [
        Figure(
            name=f"first save of {name} / memcpy, {place}",
            unit="x",
            samples=[run[0] / s for run, s in zip(runs, memcpy_s, strict=True)],
        )
        for name, runs in saves.items()
    ]
    return Measured(settings={}, comparisons=comparisons, figures=firsts)


def _peers(found: dict[str, list[dict[str, list[float]]]]) -> list[list[dict[str, list[float]]]]:
    return [found[name] for name in METHODS]


def _interference(bench: _Sides, pairs: int) -> Comparison:
    more = [*FULL_STEP, "cluster.num_workers=2"]
    found = interleave(
        pairs,
        none=lambda: bench.ours(*more, "snapshot.every_steps=0")[0],
        ours=lambda: bench.ours(*more)[0],
    )
    return Comparison(
        name="time from step to step, a snapshot each step against none",
        unit="ms",
        goal="at most 1.03",
        ours=[run.step_ms(WARMUP_STEPS) for run in found["ours"]],
        peer=[run.step_ms(WARMUP_STEPS) for run in found["none"]],
    )


BENCH = Bench(
    name="checkpoint",
    title="What a copy of the state costs the training",
    about=ABOUT,
    pairs=5,
    measure=measure,
)

if __name__ == "__main__":
    sys.exit(main(BENCH, add_options))
