"""The two ways to run the same training: `phalanx train`, and the bare engine under torchrun."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from launch.compose import compose
from orchestrator.agent.zygotehandle import MALLOC_TUNABLES
from orchestrator.codec import encode
from orchestrator.control.specs import worker_specs
from orchestrator.data.manifest import Manifest
from orchestrator.fleet.surroundings import here
from orchestrator.observe.metrics import StepRow, read_rows
from orchestrator.placement import place_workers
from orchestrator.plan import plan_run
from orchestrator.runfolder import RunFolder
from orchestrator.spec import ResumePoint
from tests.bench.harness import CpuTimes

BARE_WORKER = Path(__file__).with_name("bare_worker.py")
NOT_SET = ("RAY_ADDRESS", "OMP_NUM_THREADS", "WANDB_API_KEY", "WANDB_MODE")
"""Left out of both sides' environment, so that a person's shell does not decide the figures."""
POLL_S = 0.002


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished command; times in unix seconds."""

    typed: float
    first_row: float
    """When the first step could be read in the command's output file."""
    ended: float
    rows: list[tuple[float, float, int]]
    """(step done on its slowest rank, loss sum over the ranks, batch digest) of each step."""
    cpu_s: float
    """Of the whole machine, from typing the command to its end: right on a quiet machine only."""

    def step_ms(self, warmup_steps: int) -> list[float]:
        """From the end of each step to the end of the next."""
        ends = [row[0] for row in self.rows[warmup_steps:]]
        return [(after - before) * 1e3 for before, after in pairwise(ends)]


def phalanx(words: Sequence[str], root: Path, run_id: str, more: Mapping[str, str] | None = None) -> Run:
    """`phalanx train WORDS` in a run folder of its own; `more` is added to its environment."""
    folder = RunFolder(root / run_id)
    command = [str(Path(sys.executable).with_name("phalanx")), "train", *words]
    timed = _timed([*command, f"run.root={root}", f"run.id={run_id}"], folder.metrics, root / f"{run_id}.log", more)
    tokens = {row.step: _ours(row) for row in read_rows(folder.metrics)}
    return Run(**timed, rows=[tokens[step] for step in sorted(tokens)])


def _ours(row: StepRow) -> tuple[float, float, int]:
    assert row.time is not None
    return row.time, row.loss * row.tokens, int(row.batch_digest, 16)


def torchrun(words: Sequence[str], manifest: Manifest, root: Path, run_id: str, device: str = "cpu") -> Run:
    """The same config's engine, rows and DeepSpeed settings under torchrun, with our ranks' allocator settings:
    what an orchestrator costs is measured, not what a person may forget to set."""
    folder, num_ranks = write_specs(words, manifest, root, run_id, device)
    arguments = [str(BARE_WORKER), str(folder / "specs.json"), str(folder)]
    command = [*torchrun_command(num_ranks), *arguments]
    allocator = {"GLIBC_TUNABLES": MALLOC_TUNABLES}
    timed = _timed(command, folder / "rank_0.jsonl", root / f"{run_id}.log", allocator)
    ranks = [_read(folder / f"rank_{rank}.jsonl") for rank in range(num_ranks)]
    return Run(**timed, rows=list(_joined(ranks)))


def torchrun_command(num_ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]


def write_specs(
    words: Sequence[str], manifest: Manifest, root: Path, run_id: str, device: str = "cpu"
) -> tuple[Path, int]:
    """(new folder with specs.json, how many ranks): what a bare worker needs to know of the config."""
    config = compose([*words, f"run.id={run_id}"]).config
    cpus = config.cluster.num_workers * config.cluster.cpus_per_worker
    placement = place_workers(config.cluster, device, [here(cpus)])
    specs = worker_specs(
        config,
        plan_run(config, manifest, device=device),
        manifest,
        placement,
        attempt=1,
        resume=ResumePoint(),
        checkpoint_url="",
        store_host="",
        store_port=0,
        interfaces=dict.fromkeys(placement.nodes),
    )
    folder = root / run_id
    folder.mkdir()
    (folder / "specs.json").write_text(json.dumps([encode(spec) for spec in specs]))
    return folder, len(specs)


def _joined(ranks: list[list[dict[str, float]]]) -> Iterator[tuple[float, float, int]]:
    for said in zip(*ranks, strict=True):
        digest = sum(int(one["digest"]) for one in said) % 2**64
        yield max(one["time"] for one in said), sum(one["loss_sum"] for one in said), digest


def _read(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_same_work(ours: Run, peer: Run, tolerance: float = 1e-5) -> None:
    """Both sides trained on the same rows to the same losses, or the comparison means nothing; relative."""
    if [row[2] for row in ours.rows] != [row[2] for row in peer.rows]:
        raise RuntimeError("the two sides did not read the same rows")
    worst = max(abs(a[1] - b[1]) / abs(b[1]) for a, b in zip(ours.rows, peer.rows, strict=True))
    if worst > tolerance:
        raise RuntimeError(f"the two sides' losses differ by {worst:.1e}")


def _timed(
    command: list[str], first_output: Path, log: Path, more: Mapping[str, str] | None = None
) -> dict[str, float]:
    environment = {key: value for key, value in os.environ.items() if key not in NOT_SET} | dict(more or {})
    before = CpuTimes.now()
    with log.open("w") as output:
        typed = time.time()
        with subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT) as process:
            first_row = _wait_for_line(first_output, process)
            process.wait()
    ended = time.time()
    if process.returncode or first_row is None:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {log.read_text()[-3000:]}")
    cpu_s = CpuTimes.now().since(before).busy_s
    return {"typed": typed, "first_row": first_row, "ended": ended, "cpu_s": cpu_s}


def _wait_for_line(path: Path, process: "subprocess.Popen[bytes]") -> float | None:
    """When the file had its first bytes; None where the process ended before."""
    while True:
        try:
            if path.stat().st_size > 0:
                return time.time()
        except FileNotFoundError:
            pass
        if process.poll() is not None:
            return None
        time.sleep(POLL_S)
