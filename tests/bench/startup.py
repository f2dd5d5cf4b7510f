"""From typing the command to the first step, against torchrun: python -m tests.bench.startup"""

import argparse
import contextlib
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orchestrator.observe.ledger import read_events
from orchestrator.runfolder import RunFolder
from tests.bench.corpus import write_tokens
from tests.bench.harness import Bench, Comparison, Figure, Measured, interleave, main
from tests.bench.sides import Run, check_same_work, phalanx, torchrun

WORKERS = 2
CORES = 2

ABOUT = f"""Wall time from typing the command to the first optimizer step being written to its file, {WORKERS} CPU
workers, tiny model, ZeRO-2: `phalanx train` (compose, plan, Ray, agents, zygote, ranks; row 1 of metrics.jsonl),
once with a Ray of its own and once joined to one that runs already, against the same engine under
`torchrun --standalone` (imports, process group, engine; line 1 of rank 0). Files are looked at every 2 ms. The
phases below are phalanx's own, from the events of the same runs."""

RAY_SCRIPT = """
import sys, ray
ray.init(num_cpus=int(sys.argv[1]), include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[2])
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def measure(options: argparse.Namespace) -> Measured:
    model = {"model": "tiny", "train.seq_len": 64, "train.steps": 2}
    words = [*(f"{key}={value}" for key, value in model.items()), "tracking=jsonl", "parallel=zero2"]
    words += [f"cluster.num_workers={WORKERS}", "checkpoint.every_steps=0"]
    with tempfile.TemporaryDirectory(prefix="phx-bench-") as folder, running_ray(Path(folder) / "ray") as address:
        root = Path(folder)
        manifest = write_tokens(root / "data", 100_000, 512)
        words.append(f"data.path={root / 'data'}")
        numbers = itertools.count()
        folders: dict[str, list[RunFolder]] = {"own": [], "joined": []}

        def ours(kind: str, *more: str) -> Run:
            run_id = f"run_{next(numbers)}"
            folders[kind].append(RunFolder(root / run_id))
            return phalanx([*words, *more], root, run_id)

        runs = interleave(
            options.pairs,
            torchrun=lambda: torchrun(words, manifest, root, f"bare_{next(numbers)}"),
            own=lambda: ours("own"),
            joined=lambda: ours("joined", f"cluster.address={address}"),
        )
        figures = [f for kind in folders for f in phases(kind, runs[kind], folders[kind])]
    for pair in zip(runs["torchrun"], runs["own"], runs["joined"], strict=True):
        check_same_work(pair[1], pair[0])
        check_same_work(pair[2], pair[0])
    return Measured(
        settings={**model, "workers": WORKERS, "pairs": options.pairs},
        comparisons=[
            _compare(f"{what}, {label}", goal, runs[kind], runs["torchrun"], field)
            for what, field, goal in (
                ("command to first step", "first_row", "at most 1.1"),
                ("command to its end (2 steps)", "ended", "low"),
            )
            for kind, label in (("own", "a Ray of its own"), ("joined", "joined Ray"))
        ],
        figures=figures,
    )


@contextlib.contextmanager
def running_ray(temp_dir: Path) -> Iterator[str]:
    """The address of a Ray on this machine that ends with the block."""
    command = [sys.executable, "-c", RAY_SCRIPT, str(CORES), str(temp_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def _compare(name: str, goal: str, ours: list[Run], peer: list[Run], field: str) -> Comparison:
    return Comparison(
        name=name,
        unit="s",
        goal=goal,
        ours=[[getattr(run, field) - run.typed] for run in ours],
        peer=[[getattr(run, field) - run.typed] for run in peer],
    )


def phases(kind: str, runs: list[Run], folders: list[RunFolder]) -> list[Figure]:
    """Where the time went, from the ledger: each event's distance from the one before."""
    marks = []
    for run, folder in zip(runs, folders, strict=True):
        at = {event["event"]: event["t"] for event in reversed(read_events(folder.events))}
        marks.append([run.typed, at["run_started"], at["attempt_started"], run.rows[0][0], run.first_row, run.ended])
    names = (
        "compose, Ray, agents",
        "resume point",
        "zygote's imports, ranks, engine, step 1",
        "report of step 1 to its row",
        "step 2, checkpoint, end of Ray",
    )
    return [
        Figure(name=f"{kind} Ray: {name}", unit="s", samples=[mark[i + 1] - mark[i] for mark in marks])
        for i, name in enumerate(names)
    ]


CAUSE = """Both goals are met. A Ray of its own starts without the dashboard's server, which took 1.8 s from the
zygote's imports (1.08 of torchrun with it). Both cores are busy from the first second to the last; Ray looks only
once a second whether its node is there, which is the second by which some starts are later."""

BENCH = Bench(
    name="startup",
    title="From the command to the first step against torchrun",
    about=ABOUT,
    pairs=7,
    measure=measure,
    cause=CAUSE,
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
