"""Step time with W&B up, slow, dead and dying, against W&B disabled: python -m tests.bench.wandb"""

import argparse
import itertools
import sys
import tempfile
import threading
from pathlib import Path

from orchestrator.observe.metrics import read_last_rows
from orchestrator.runfolder import RunFolder
from tests.bench.corpus import write_tokens
from tests.bench.harness import Bench, Comparison, Measured, interleave, main
from tests.bench.sides import Run, check_same_work, phalanx
from tests.observe.wandb_server import API_KEY, WandbServer

VOCAB_SIZE = 4096
NUM_TOKENS = 4_000_000
WARMUP_STEPS = 20
WORKERS = 2
SLOW_S = 3.0

ABOUT = f"""Time from the end of each optimizer step to the end of the next, on {WORKERS} CPU workers (gloo, ZeRO-2):
the real W&B client in its process beside the driver, a row every step, against `tracking.wandb.mode=disabled`. The
server is the tests' own on loopback: up; slow (every answer {SLOW_S:g} s late); dead from the start; dying in the
middle of the steps. The first {WARMUP_STEPS} steps are left out; that all sides did the same steps is checked. The
aim of 0.99 of the steps per second is 1.01 of the time."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=120, help="steps of each run, warm-up included (default: 120)")


def measure(options: argparse.Namespace) -> Measured:
    words = ["model=quickstart", "train.seq_len=128", "train.global_batch_size=16", "train.micro_batch_size=4"]
    words += [f"train.steps={options.steps}", f"cluster.num_workers={WORKERS}", "parallel=zero2"]
    words += ["checkpoint.every_steps=0", "tracking.console_every_steps=50"]
    with tempfile.TemporaryDirectory(prefix="phx-bench-") as folder:
        root = Path(folder)
        write_tokens(root / "data", NUM_TOKENS, VOCAB_SIZE)
        words.append(f"data.path={root / 'data'}")
        numbers = itertools.count()

        def side(how: str) -> Run:
            return with_server(
                [*words, "tracking.wandb.mode=online"], root, f"run_{next(numbers)}", how, options.steps
            )

        runs = interleave(
            options.pairs,
            disabled=lambda: phalanx([*words, "tracking=jsonl"], root, f"run_{next(numbers)}"),
            up=lambda: side("up"),
            slow=lambda: side("slow"),
            dead=lambda: side("dead"),
            dying=lambda: side("dying"),
        )
    for how in ("up", "slow", "dead", "dying"):
        for ours, peer in zip(runs[how], runs["disabled"], strict=True):
            check_same_work(ours, peer)
    return Measured(
        settings={"steps": options.steps, "pairs": options.pairs},
        comparisons=[
            Comparison(
                name=f"step, W&B {how}",
                unit="ms",
                goal="1.00, at most 1.01",
                ours=[run.step_ms(WARMUP_STEPS) for run in runs[how]],
                peer=[run.step_ms(WARMUP_STEPS) for run in runs["disabled"]],
            )
            for how in ("up", "slow", "dead", "dying")
        ],
    )


def with_server(words: list[str], root: Path, run_id: str, how: str, steps: int) -> Run:
    """A run whose W&B server is as `how` says."""
    with WandbServer() as server:
        environment = {"WANDB_API_KEY": API_KEY, "WANDB_BASE_URL": server.url}
        server.delay_s = SLOW_S if how == "slow" else 0.0
        if how == "dead":
            server.stop()
        has_ended = threading.Event()
        killer = threading.Thread(
            target=_stop_in_the_middle, args=(server, RunFolder(root / run_id), steps, has_ended)
        )
        if how == "dying":
            killer.start()
        try:
            return phalanx(words, root, run_id, environment)
        finally:
            has_ended.set()
            if how == "dying":
                killer.join()


def _stop_in_the_middle(server: WandbServer, folder: RunFolder, steps: int, has_ended: threading.Event) -> None:
    while not has_ended.wait(0.1):
        rows = read_last_rows(folder.metrics, 1)
        if rows and rows[0].step >= steps // 2:
            server.stop()
            return


CAUSE = """No step waits for the server: one that answers late or not at all costs less than one that answers.
What is left is the work of the client's own processes: with two ranks on two cores, there is no core free for
them."""

BENCH = Bench(
    name="wandb",
    title="Step time with W&B up, slow, dead and dying against W&B disabled",
    about=ABOUT,
    pairs=7,
    measure=measure,
    cause=CAUSE,
)

if __name__ == "__main__":
    sys.exit(main(BENCH, add_options))
