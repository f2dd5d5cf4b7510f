"""Step time under the orchestrator against the same engine under bare torchrun: python -m tests.bench.step_time"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

from tests.bench.corpus import write_tokens
from tests.bench.harness import Bench, Comparison, Measured, interleave, main
from tests.bench.sides import Run, check_same_work, phalanx, torchrun

VOCAB_SIZE = 4096
NUM_TOKENS = 4_000_000
WARMUP_STEPS = 20
WORKERS = 2

WITHOUT_SAFETY = ("snapshot.every_steps=0", "worker.standby=false")
"""What torchrun does not do either."""
ALONE = ("cluster.num_workers=1",)
PEERS = {
    "phalanx": "torchrun",
    "phalanx_bare": "torchrun",
    "phalanx_wandb": "torchrun",
    "phalanx_alone": "torchrun_alone",
}

ABOUT = f"""Time from the end of each optimizer step to the end of the next, on {WORKERS} CPU workers (gloo, ZeRO-2,
one thread each): `phalanx train` (Ray, zygote, agreement of the ranks, reports, metrics) against a script of thirty
lines under `torchrun --standalone` that uses the same `Engine`, rows, learning rates and DeepSpeed settings and
does nothing else. Both have our ranks' settings of the allocator (`GLIBC_TUNABLES`: freed memory is kept), which are
worth a fifth of a step with 10 M parameters. Both write down when each step was done on its slowest rank; the first
{WARMUP_STEPS} steps are left out. That both saw the same rows and reached the same losses is checked. CPU seconds are
the whole machine's, from typing the command to its end."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=120, help="steps of each run, warm-up included (default: 120)")
    parser.add_argument("--global-batch", type=int, default=16, help="samples per step (default: 16)")


def measure(options: argparse.Namespace) -> Measured:
    model = {"model": "quickstart", "train.seq_len": 128, "train.global_batch_size": options.global_batch}
    words = [f"{key}={value}" for key, value in model.items()]
    words += ["train.micro_batch_size=4", f"train.steps={options.steps}", f"cluster.num_workers={WORKERS}"]
    words += ["parallel=zero2", "checkpoint.every_steps=0", "tracking.console_every_steps=50"]
    with tempfile.TemporaryDirectory(prefix="phx-bench-") as folder:
        root = Path(folder)
        manifest = write_tokens(root / "data", NUM_TOKENS, VOCAB_SIZE)
        words.append(f"data.path={root / 'data'}")
        jsonl, offline = "tracking=jsonl", "tracking.wandb.mode=offline"
        numbers = itertools.count()
        runs = interleave(
            options.pairs,
            torchrun=lambda: torchrun([*words, jsonl], manifest, root, f"bare_{next(numbers)}"),
            phalanx=lambda: phalanx([*words, jsonl], root, f"run_{next(numbers)}"),
            phalanx_bare=lambda: phalanx([*words, jsonl, *WITHOUT_SAFETY], root, f"run_{next(numbers)}"),
            phalanx_wandb=lambda: phalanx([*words, offline], root, f"run_{next(numbers)}"),
            torchrun_alone=lambda: torchrun([*words, *ALONE, jsonl], manifest, root, f"bare_{next(numbers)}"),
            phalanx_alone=lambda: phalanx([*words, *ALONE, jsonl], root, f"run_{next(numbers)}"),
        )
    for side, its_peer in PEERS.items():
        for ours, peer in zip(runs[side], runs[its_peer], strict=True):
            check_same_work(ours, peer)
    settings = {**model, "steps": options.steps, "pairs": options.pairs}
    return Measured(
        settings=settings,
        comparisons=[
            _steps("step", runs["phalanx"], runs["torchrun"]),
            _steps("step, without snapshots", runs["phalanx_bare"], runs["torchrun"]),
            _steps("step, with W&B offline", runs["phalanx_wandb"], runs["torchrun"]),
            _steps("step, one worker, a core left free", runs["phalanx_alone"], runs["torchrun_alone"]),
            _cpu("CPU of a whole run", runs["phalanx"], runs["torchrun"]),
            _cpu("CPU of a whole run, with W&B offline", runs["phalanx_wandb"], runs["torchrun"]),
        ],
    )


def _steps(name: str, ours: list[Run], peer: list[Run]) -> Comparison:
    return Comparison(
        name=name,
        unit="ms",
        goal="1.00, at most 1.01",
        ours=[run.step_ms(WARMUP_STEPS) for run in ours],
        peer=[run.step_ms(WARMUP_STEPS) for run in peer],
    )


def _cpu(name: str, ours: list[Run], peer: list[Run]) -> Comparison:
    return Comparison(
        name=name, unit="s", goal="low", ours=[[run.cpu_s] for run in ours], peer=[[run.cpu_s] for run in peer]
    )


CAUSE = """The workers leave no core free, and go in step: what one core loses the other waits for. By /proc, in ms
of a core each second: Ray's own processes 7 (15 with its usual timers, statistics and dashboard server), an actor
that only exists 5 (Ray has its main thread look for signals a hundred times a second), what the agent does beside 4
to 9, the driver 10, ranks that stand by 5 (gloo's loops), and of the ranks themselves the copy and the checksum of
the state after each step. A whole run takes less CPU than torchrun's. With a core left free, as beside GPUs, the
pairs lie around the goal by as much as torchrun's own runs differ. The driver heard of steps four times a second in
this record; now it is ten times."""

BENCH = Bench(
    name="step_time",
    title="Step time under the orchestrator against bare torchrun",
    about=ABOUT,
    pairs=7,
    measure=measure,
    cause=CAUSE,
)

if __name__ == "__main__":
    sys.exit(main(BENCH, add_options))
