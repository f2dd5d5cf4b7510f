"""A real `phalanx train` in a process of its own, on a small model and real data, that tests watch and disturb."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

PATIENCE_S = 240.0
"""How long to wait for what must come; generous, because machines are slow."""
WORDS = [
    "model=tiny",
    "train.seq_len=32",
    "train.global_batch_size=4",
    "train.micro_batch_size=2",
    "train.steps=1000000",
    "optim.schedule=constant",
    "checkpoint.every_steps=15",
    "checkpoint.keep_last=2",
    "cluster.num_workers=2",
    "tracking.wandb.mode=disabled",
    "run.id=faulty",
]


def wait_for(what, is_true, process=None):
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert process is None or process.poll() is None, f"the run ended before: {what}"
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.05)


class Run:
    def __init__(self, root: Path, words: list[str]) -> None:
        self.folder = root / "runs" / "faulty"
        self.output = root / "output"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "launch.cli", "train", *WORDS, f"run.root={root}/runs", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=clean_environment(),
            )

    def events(self, name: str | None = None) -> list[dict]:
        path = self.folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # the last line may be half written
                found.append(json.loads(line))
        return [event for event in found if name in {None, event["event"]}]

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for_commit_after(self, step: int) -> int:
        def newest() -> int:
            return max((event["step"] for event in self.events("checkpoint_committed")), default=-1)

        wait_for(f"a checkpoint after step {step}", lambda: newest() > step, self.process)
        return newest()

    def trained_steps(self) -> int:
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_until_it_trains(self) -> None:
        before = self.trained_steps()
        wait_for("ten more steps", lambda: self.trained_steps() > before + 10, self.process)

    def end(self) -> int:
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            self.process.kill()


def prepare_data(folder: Path) -> Path:
    """Prepared data of made-up words; its folder."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(300)]
    (folder / "text.txt").write_text("\n".join(" ".join(rng.choices(words, k=60)) for _ in range(400)))
    phalanx("prepare", f"data.source={folder}/text.txt", f"data.path={folder}/prepared", "data.vocab_size=400")
    return folder / "prepared"


def phalanx(*words: str) -> str:
    """What a verb prints; it must succeed."""
    command = [sys.executable, "-m", "launch.cli", *words]
    return subprocess.run(command, check=True, env=clean_environment(), capture_output=True, text=True).stdout


def clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "WANDB_"))}
    return kept | {"PYTHONPATH": str(Path(__file__).parents[2])}
