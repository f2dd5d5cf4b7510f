"""What only a GPU can show: snapshots over the bus, recovery with CUDA, and MFU: python -m tests.bench.gpu"""

import argparse
import itertools
import math
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from orchestrator.data.manifest import Manifest
from orchestrator.observe.metrics import StepRow, read_rows
from orchestrator.runfolder import RunFolder
from tests.bench import killed, sides
from tests.bench.corpus import write_tokens
from tests.bench.harness import Bench, Comparison, Figure, Measured, interleave, main

VOCAB_SIZE = 50257
NUM_TOKENS = 20_000_000
WARMUP_STEPS = 8
SAME_LOSS = 5e-3
"""What another order of sums may change in bf16."""

ABOUT = f"""One GPU, bf16, ZeRO-1, sequences of 2,048, NCCL in a world of one. `phalanx train` with a snapshot of the
whole state after every step (device to host through a small pinned ring, on a stream and a thread of its own), the
same without snapshots, and the bare engine under torchrun, in turn; the first {WARMUP_STEPS} steps are left out. MFU
is `phalanx train`'s own figure, of the hardware table's peak. Then the rank is killed with SIGKILL at random moments;
a new one is forked from the zygote, initialises CUDA and restores from the agent's memory."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", default="gpt_125m,gpt_1_3b", help="of conf/model (default: %(default)s)")
    parser.add_argument("--hardware", default="h100", help="of the hardware table (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="steps of each run (default: %(default)s)")
    parser.add_argument("--global-batch", type=int, default=32, help="samples per step (default: %(default)s)")
    parser.add_argument("--address", help="of a Ray that runs already (default: each run starts its own)")
    parser.add_argument("--kills", type=int, default=5, help="of each model (default: %(default)s)")


def measure(options: argparse.Namespace) -> Measured:
    measured = Measured(
        settings={
            "gpu": torch.cuda.get_device_name(),
            "steps": options.steps,
            "global_batch_size": options.global_batch,
            "pairs": options.pairs,
            "kills": options.kills,
        },
        comparisons=[],
    )
    with tempfile.TemporaryDirectory(prefix="phx-bench-") as folder:
        root = Path(folder)
        manifest = write_tokens(root / "data", NUM_TOKENS, VOCAB_SIZE)
        for model in options.models.split(","):
            trial = Trial(model, root / model, manifest, _words(options, model, root / "data"))
            trial.root.mkdir()
            measured.comparisons.extend(trial.compare(options))
            measured.figures.extend(trial.calm_figures())
            measured.figures.extend(trial.kill(options.kills))
    return measured


def _words(options: argparse.Namespace, model: str, data: Path) -> list[str]:
    return [
        f"model={model}", "train=bf16", "parallel=zero1", "tracking=jsonl", f"data.path={data}",
        f"train.global_batch_size={options.global_batch}", "train.micro_batch_size=8", "train.seq_len=2048",
        "cluster=local", "cluster.num_workers=1", "cluster.cpus_per_worker=4", "cluster.device=cuda",
        f"cluster.hardware={options.hardware}", "checkpoint.every_steps=0", "tracking.console_every_steps=10",
        "fault.max_restarts=1000", "optim.warmup_steps=10", "optim.schedule_steps=1000",
        *([f"cluster.address={options.address}"] if options.address else []),
    ]  # fmt: skip


@dataclass
class Trial:
    """One model's runs, in a folder of their own."""

    model: str
    root: Path
    manifest: Manifest
    words: list[str]
    calm_id: str = ""
    """The newest undisturbed run with snapshots."""

    def compare(self, options: argparse.Namespace) -> list[Comparison]:
        numbers = itertools.count()
        words = [*self.words, f"train.steps={options.steps}"]

        def bare() -> sides.Run:
            return sides.torchrun(words, self.manifest, self.root, f"bare_{next(numbers)}", "cuda")

        def snapshots() -> sides.Run:
            self.calm_id = f"run_{next(numbers)}"
            return sides.phalanx(words, self.root, self.calm_id)

        def none() -> sides.Run:
            return sides.phalanx([*words, "snapshot.every_steps=0"], self.root, f"run_{next(numbers)}")

        runs = interleave(options.pairs, bare=bare, snapshots=snapshots, none=none)
        for ours, also_ours, peer in zip(runs["snapshots"], runs["none"], runs["bare"], strict=True):
            sides.check_same_work(ours, also_ours, SAME_LOSS)
            sides.check_same_work(ours, peer, SAME_LOSS)
        step = {name: [run.step_ms(WARMUP_STEPS) for run in side] for name, side in runs.items()}
        pairs = [
            ("a snapshot every step, against none", "snapshots", "none", "at most 1.03"),
            ("no snapshots, against bare torchrun", "none", "bare", "at most 1.01"),
        ]
        return [
            Comparison(name=f"{self.model}: step, {name}", unit="ms", goal=goal, ours=step[ours], peer=step[peer])
            for name, ours, peer, goal in pairs
        ]

    def calm_figures(self) -> list[Figure]:
        rows = self._rows(self.calm_id)[WARMUP_STEPS:]
        return [
            self._figure("MFU with a snapshot every step", "%", [100 * (row.mfu or 0.0) for row in rows]),
            self._figure("update waited for the snapshot", "ms", [1e3 * (row.snapshot_s or 0.0) for row in rows]),
            self._figure("training thread's own part", "ms", [1e3 * (row.keep_s or 0.0) for row in rows]),
            self._figure("memory on the GPU", "GB", [(row.memory_bytes or 0) / 1e9 for row in rows]),
        ]

    def kill(self, kills: int) -> list[Figure]:
        """SIGKILL at random moments; the rows and losses afterwards against the calm run's."""
        words = [*self.words, "train.steps=100000"]
        done = killed.kill(lambda: killed.phalanx(words, self.root, "killed"), kills, random.Random(0))
        calm = {row.step: row for row in self._rows(self.calm_id)}
        after = [row for row in self._rows("killed") if row.attempt > 1 and row.step in calm]
        if any(row.batch_digest != calm[row.step].batch_digest for row in after):
            raise RuntimeError("other rows were read after a kill")
        differences = [abs(row.loss / calm[row.step].loss - 1) for row in after]
        return [
            self._figure("from SIGKILL to the next step", "ms", done.recovery_ms or [math.nan]),
            self._figure("kills not recovered", "kills", [float(done.unrecovered)]),
            self._figure("loss after kills, from the calm run's", "relative", differences or [math.nan]),
        ]

    def _rows(self, run_id: str) -> list[StepRow]:
        return read_rows(RunFolder(self.root / run_id).metrics)

    def _figure(self, name: str, unit: str, samples: list[float]) -> Figure:
        return Figure(name=f"{self.model}: {name}", unit=unit, samples=samples)


BENCH = Bench(name="gpu", title="On one GPU: snapshots, recovery and MFU", about=ABOUT, pairs=2, measure=measure)

if __name__ == "__main__":
    if not torch.cuda.is_available():
        print("gpu: left out, this machine has no GPU", file=sys.stderr)
        sys.exit(0)
    sys.exit(main(BENCH, add_options))
