"""From SIGKILL of a rank to the next step, against torchrun and Ray Train: python -m tests.bench.recovery"""

import argparse
import itertools
import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.data.manifest import Manifest
from orchestrator.observe.ledger import read_events
from orchestrator.observe.metrics import read_rows
from orchestrator.runfolder import RunFolder
from tests.bench.corpus import write_tokens
from tests.bench.harness import Bench, Comparison, Figure, Measured, interleave, main
from tests.bench.killed import Kills, busy, kill, phalanx, ray_train, torchrun

VOCAB_SIZE = 4096
NUM_TOKENS = 1_000_000
WORKERS = 2
SIZES = {
    "2m": ["model.hidden_size=160", "model.ffn_hidden_size=448", "model.num_layers=5"],
    "10m": ["model.hidden_size=320", "model.ffn_hidden_size=848", "model.num_layers=8"],
}
"""Overrides of `model=quickstart`, by about how many parameters they make."""
LABELS = {"phalanx": "ours", "torchrun": "torchrun", "ray_train": "Ray Train"}
GOALS = {"torchrun": "at most 0.1", "ray_train": "at most 0.05"}
MARKS = ("rank_died", "attempt_started", "first_step")
"""Events of one recovery, in their order."""

ABOUT = f"""Time from SIGKILL of a random rank at a random moment to the end of the next step on its slowest rank,
with {WORKERS} CPU workers (gloo, one thread each, sequences of 64, 4 samples a step). Ours restores the step before
the kill from the agents' memory. The peers run the same `Engine`, rows and DeepSpeed settings: under `torchrun
--max-restarts` with `--rdzv-backend=c10d` and `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` (the setting that recovers
most often). `--peers torchrun,ray_train` sets the training loop of Ray Train v2 with
`FailureConfig(max_failures=-1)` beside them, too; no figure of it is recorded yet. The peers neither save nor load
anything: they begin with step 1 again, which favours them. A side that does no step for 60 s has
not recovered. The phases are those of our own recoveries: until the driver hears of the death, until the next
attempt starts, then those of the slowest rank."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=20, help="kills of each side in each pair (default: 20)")
    parser.add_argument("--zero", default="1,2,3", help="ZeRO stages (default: 1,2,3)")
    parser.add_argument("--sizes", default="2m,10m", help=f"of {', '.join(SIZES)} (default: 2m,10m)")
    parser.add_argument("--peers", default="torchrun", help="of torchrun, ray_train, none (default: torchrun)")
    parser.add_argument(
        "--busy", type=int, default=0, help="processes that keep the cores busy beside it (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of victims and moments (default: 0)")


def measure(options: argparse.Namespace) -> Measured:
    comparisons: list[Comparison] = []
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="phx-bench-") as folder, busy(options.busy):
        root = Path(folder)
        manifest = write_tokens(root / "data", NUM_TOKENS, VOCAB_SIZE)
        for size, stage in itertools.product(options.sizes.split(","), options.zero.split(",")):
            measured = _measure_one(options, root / f"{size}_zero_{stage}", manifest, size, int(stage))
            comparisons += measured.comparisons
            figures += measured.figures
    settings = {name: getattr(options, name) for name in ("pairs", "kills", "busy", "seed")}
    return Measured(settings=settings, comparisons=comparisons, figures=figures)


def _measure_one(options: argparse.Namespace, root: Path, manifest: Manifest, size: str, stage: int) -> Measured:
    root.mkdir()
    words = [
        *("model=quickstart", *SIZES[size], "train.seq_len=64", "train.global_batch_size=4"),
        *("train.micro_batch_size=2", "train.steps=1000000", f"cluster.num_workers={WORKERS}"),
        *(f"parallel.zero_stage={stage}", "checkpoint.every_steps=0", "fault.max_restarts=1000000"),
        *("tracking=jsonl", f"data.path={root.parent / 'data'}"),
    ]
    dice = random.Random(f"{options.seed} {size} {stage}")
    numbers = itertools.count()
    folders: list[RunFolder] = []

    def ours() -> Any:
        run_id = f"run_{next(numbers)}"
        folders.append(RunFolder(root / run_id))
        return phalanx(words, root, run_id)

    peers: dict[str, Callable[[], Any]] = {
        "torchrun": lambda: torchrun(words, manifest, root, f"torchrun_{next(numbers)}"),
        "ray_train": lambda: ray_train(words, manifest, root, f"ray_{next(numbers)}"),
    }
    sides = {name: start for name, start in peers.items() if name in options.peers.split(",")} | {"phalanx": ours}
    done: dict[str, list[Kills]] = interleave(
        options.pairs, **{name: partial(kill, start, options.kills, dice) for name, start in sides.items()}
    )
    name = f"{size.upper()} parameters, ZeRO-{stage}"
    ours_done = done["phalanx"]
    return Measured(
        settings={},
        comparisons=[
            _compare(f"{name}, against {LABELS[peer]}", GOALS[peer], ours_done, done[peer])
            for peer in peers
            if peer in done
        ],
        figures=[
            Figure(name=f"{name}: {LABELS[side]}, not recovered", unit="kills a pair", samples=_unrecovered(kills))
            for side, kills in done.items()
        ]
        + _ledger_figures(name, ours_done, folders),
    )


def _compare(name: str, goal: str, ours: list[Kills], peer: list[Kills]) -> Comparison:
    return Comparison(
        name=name,
        unit="ms",
        goal=goal,
        ours=[kills.recovery_ms for kills in ours],
        peer=[kills.recovery_ms for kills in peer],
    )


def _unrecovered(kills: list[Kills]) -> list[float]:
    return [float(one.unrecovered) for one in kills]


def _ledger_figures(name: str, done: list[Kills], folders: list[RunFolder]) -> list[Figure]:
    """Steps lost, and where the time went, by the events and rows of our own runs."""
    lost: list[float] = []
    phases: dict[str, list[float]] = {}
    for kills, folder in zip(done, folders, strict=True):
        events = read_events(folder.events)
        lost += [event["steps_lost"] for event in events if event["event"] == "recovered"]
        first_rows = {row.attempt: row.time for row in reversed(read_rows(folder.metrics))}
        for at in kills.at:
            died, started, first = (next(e for e in events if e["event"] == mark and e["t"] > at) for mark in MARKS)
            ended = first_rows[first["attempt"]] or 0.0
            forked = ended - sum(first["phases_s"].values())
            times = {
                "death seen by the driver": died["t"] - at,
                "ranks stopped, resume point, attempt claimed": started["t"] - died["t"],
                "ranks forked": forked - started["t"],
                **{f"rank: {phase}": seconds for phase, seconds in first["phases_s"].items()},
            }
            for phase, seconds in times.items():
                phases.setdefault(phase, []).append(seconds * 1e3)
    return [
        Figure(name=f"{name}: steps lost", unit="steps", samples=lost),
        *(Figure(name=f"{name}: {phase}", unit="ms", samples=samples) for phase, samples in phases.items()),
    ]


CAUSE = """Ranks that stand by since the attempt before (`worker.standby`) leave the hand-over, the restore and the
step itself to be waited for. A kill that comes sooner than they are ready, about a second after an attempt's first
step, costs a fork, the rendezvous and the engine besides. A snapshot that the kill caught unsealed costs one step.
With ZeRO-3 and 10M parameters the step that is waited for (0.47 of the 0.56 s) is by itself longer than a tenth of
torchrun's recovery: on two cores over gloo no recovery, however quick, would reach the goal there."""

BENCH = Bench(
    name="recovery",
    title="From SIGKILL of a rank to the next step, against torchrun",
    about=ABOUT,
    pairs=5,
    measure=measure,
    cause=CAUSE,
)

if __name__ == "__main__":
    sys.exit(main(BENCH, add_options))
