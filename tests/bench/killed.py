"""The ways to run a training that is killed and comes back: `phalanx train`, torchrun, Ray Train."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.data.manifest import Manifest
from orchestrator.runfolder import RunFolder
from tests.bench.sides import BARE_WORKER, NOT_SET, write_specs

POLL_S = 0.02
"""Between two looks at the files: the times are what the ranks wrote, so this only delays the next kill."""
START_TIMEOUT_S = 300.0
GIVE_UP_S = 60.0
"""A side that has done no step for so long after a kill has not recovered."""
KILL_AFTER_S = (1.0, 3.0)
"""The next kill comes at a random moment so long after the recovery."""
RAY_WORKER = BARE_WORKER.with_name("ray_worker.py")


@dataclass(frozen=True)
class Life:
    """The ranks between two kills."""

    pids: list[int]
    first_step: float
    """When the slowest of them had done its first step, in unix seconds."""


@dataclass
class Kills:
    """What became of the kills of one session."""

    recovery_ms: list[float] = field(default_factory=list)
    """From SIGKILL to the end of the first step afterwards, on its slowest rank."""
    at: list[float] = field(default_factory=list)
    """When, in unix seconds: of those that were recovered from."""
    unrecovered: int = 0


@dataclass
class Session:
    """A training that runs until it is told to end."""

    process: "subprocess.Popen[bytes]"
    lives: Callable[[], list[Life]]
    log: Path

    def wait_for_life(self, after: float, timeout_s: float) -> Life | None:
        """Ranks that did their first step after that moment; None where none came."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.process.poll() is None:
            found = [life for life in self.lives() if life.first_step > after]
            if found:
                return found[-1]
            time.sleep(POLL_S)
        return None


def kill(start: Callable[[], contextlib.AbstractContextManager[Session]], kills: int, dice: random.Random) -> Kills:
    """Start a training and kill `kills` of its ranks, one after the other; a side that stays dead is started anew."""
    done = Kills()
    while len(done.recovery_ms) + done.unrecovered < kills:
        with start() as session:
            life = session.wait_for_life(0.0, START_TIMEOUT_S)
            if life is None:
                raise RuntimeError(f"no first step: {session.log.read_text()[-3000:]}")
            while life is not None and len(done.recovery_ms) + done.unrecovered < kills:
                time.sleep(dice.uniform(*KILL_AFTER_S))
                victim = dice.choice(life.pids)
                now = time.time()
                os.kill(victim, signal.SIGKILL)
                life = session.wait_for_life(now, GIVE_UP_S)
                if life is None:
                    done.unrecovered += 1
                else:
                    done.at.append(now)
                    done.recovery_ms.append((life.first_step - now) * 1e3)
    return done


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that do nothing but use a core."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


# ---- the sides


@contextlib.contextmanager
def phalanx(words: Sequence[str], root: Path, run_id: str) -> Iterator[Session]:
    """`phalanx train WORDS`: state restored from the agents' memory."""
    folder = RunFolder(root / run_id)
    rows = Lines(folder.metrics)
    first: dict[int, float] = {}

    def lives() -> list[Life]:
        for row in rows.new():
            first.setdefault(row["attempt"], row["time"])
        attempt = max(first, default=0)
        pids = [_logged_pid(folder, attempt, rank) for rank in range(_ranks(words))]
        return [Life(pids, first[attempt])] if attempt and all(pids) else []

    command = [str(Path(sys.executable).with_name("phalanx")), "train", *words]
    with _running([*command, f"run.root={root}", f"run.id={run_id}"], root / f"{run_id}.log") as process:
        yield Session(process, lives, root / f"{run_id}.log")


def _ranks(words: Sequence[str]) -> int:
    return next(int(word.partition("=")[2]) for word in words if word.startswith("cluster.num_workers="))


def _logged_pid(folder: RunFolder, attempt: int, rank: int) -> int:
    """From the first line of the rank's log; 0 until it is there."""
    log = folder.rank_log(attempt, rank)
    found = re.search(rf"attempt {attempt}, pid (\d+)\n", log.read_text()) if log.exists() else None
    return int(found[1]) if found else 0


@contextlib.contextmanager
def torchrun(words: Sequence[str], manifest: Manifest, root: Path, run_id: str) -> Iterator[Session]:
    """The bare engine under torchrun, restarted by it, at the setting that recovers most reliably."""
    folder, workers = write_specs(words, manifest, root, run_id)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={workers}", "--nnodes=1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{_free_port()}", f"--rdzv-id={run_id}"),
        *("--max-restarts=1000", str(BARE_WORKER), str(folder / "specs.json"), str(folder)),
    ]
    log = root / f"{run_id}.log"
    with _running(command, log, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1") as process:
        yield Session(process, _lives_in(folder, workers), log)


@contextlib.contextmanager
def ray_train(words: Sequence[str], manifest: Manifest, root: Path, run_id: str) -> Iterator[Session]:
    """The bare engine as the training loop of Ray Train v2's TorchTrainer."""
    folder, workers = write_specs(words, manifest, root, run_id)
    command = [sys.executable, str(RAY_WORKER), str(folder / "specs.json"), str(folder)]
    log = root / f"{run_id}.log"
    with _running(command, log, RAY_TRAIN_V2_ENABLED="1", RAY_USAGE_STATS_ENABLED="0") as process:
        yield Session(process, _lives_in(folder, workers), log)


def _lives_in(folder: Path, workers: int) -> Callable[[], list[Life]]:
    """The lives that bare workers write down: each rank's n-th process belongs to the n-th life."""
    files = [Lines(folder / f"rank_{rank}.jsonl") for rank in range(workers)]
    first: list[dict[int, float]] = [{} for _ in files]

    def lives() -> list[Life]:
        for file, seen in zip(files, first, strict=True):
            for row in file.new():
                seen.setdefault(row["pid"], row["time"])
        nth = zip(*(seen.items() for seen in first), strict=False)
        return [Life([pid for pid, _ in ranks], max(done for _, done in ranks)) for ranks in nth]

    return lives


class Lines:
    """The objects that are appended to a file of JSON lines, each read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_bytes = 0

    def new(self) -> list[dict[str, Any]]:
        """Those of the whole lines since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _running(command: list[str], log: Path, **variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The command in a process group of its own, told to end with the block."""
    environment = {key: value for key, value in os.environ.items() if key not in NOT_SET} | variables
    with (
        log.open("ab") as output,
        subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(GIVE_UP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
